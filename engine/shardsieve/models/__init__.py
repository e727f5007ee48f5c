"""Networks: the frozen backbone, the linear heads on its features, and number formats."""
