"""The 11 data sets of CoOp's benchmark and four variants of ImageNet, in the folders that CoOp's users have.

`facts` is the table of what is known of each, and every layout has a module that reads it. `checks` compares what was
read with the facts. The kind of dataset is `pipeline.images.datasets.coop`.
"""
