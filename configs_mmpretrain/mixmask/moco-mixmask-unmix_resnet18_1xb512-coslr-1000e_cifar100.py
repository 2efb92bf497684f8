_base_ = './moco-mixmask_resnet18_1xb512-coslr-1000e_cifar100.py'

# MixMask* of the paper: both branches, with different permutations (tables 2 and 5).
model = dict(unmix=dict(prob_global=0.5))
