# (c) Four complementary masks and both information terms.
_base_ = './mae_vit-mini-p4_1xb64-coslr-20e_cifar10.py'

model = dict(
    type='MIMAE',
    cross_weight=0.1,
    input_weight=0.001,
    information=dict(hidden_dim=128, projection_dim=64),
    backbone=dict(masking=dict(type='ComplementaryMasking', num_masks=4)),
)
