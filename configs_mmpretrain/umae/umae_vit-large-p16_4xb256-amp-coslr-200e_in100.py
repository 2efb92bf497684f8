_base_ = './umae_vit-base-p16_4xb256-amp-coslr-200e_in100.py'

model = dict(backbone=dict(arch='l'), neck=dict(embed_dim=1024))
