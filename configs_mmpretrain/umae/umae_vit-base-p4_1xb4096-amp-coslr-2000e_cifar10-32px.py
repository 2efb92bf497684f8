_base_ = './umae_vit-tiny-p4_1xb4096-amp-coslr-2000e_cifar10-32px.py'

model = dict(backbone=dict(arch='b'), neck=dict(embed_dim=768))
