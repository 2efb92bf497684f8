_base_ = './umae_vit-base-p16_8xb128-amp-coslr-200e_in1k.py'

model = dict(backbone=dict(arch='l'), neck=dict(embed_dim=1024))
