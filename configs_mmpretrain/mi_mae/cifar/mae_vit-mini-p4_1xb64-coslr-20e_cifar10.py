# (a) MAE, equal epochs.
_base_ = '../_base_/mae_vit-mini-p4_cifar10.py'
