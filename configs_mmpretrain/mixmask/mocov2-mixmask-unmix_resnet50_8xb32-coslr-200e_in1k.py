_base_ = './mocov2-mixmask_resnet50_8xb32-coslr-200e_in1k.py'

# MixMask* of the paper: both branches, with different permutations (tables 3 and 5).
model = dict(unmix=dict(prob_global=0.5))
