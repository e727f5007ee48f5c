"""Fine-tuning: what the stage `tune` is made of.

Everything random is a function of the seed and of where it happens: the draw of the epoch, the
augmentation of epoch and sample, dropout and mixup of epoch, step and process. So an interrupted
run goes on with the same numbers, and the number of workers changes nothing.
"""
