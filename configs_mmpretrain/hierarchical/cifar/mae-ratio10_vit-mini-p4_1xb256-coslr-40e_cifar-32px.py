_base_ = './mae_vit-mini-p4_1xb256-coslr-40e_cifar-32px.py'

model = dict(backbone=dict(mask_ratio=0.1))
