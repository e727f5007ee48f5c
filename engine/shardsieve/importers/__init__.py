"""From data sets as their authors publish them to labelled shards; a file per layout.

A layout turns a folder into a `Plan`: a row per image with its label, what is wrong with the rest,
and a reader of the bytes. `import_shards` writes the plan as shards, in parallel and restartable.
"""
