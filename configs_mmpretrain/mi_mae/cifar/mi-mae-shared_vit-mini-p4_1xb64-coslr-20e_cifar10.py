# (c) with the same masks for all images of a batch.
_base_ = './mi-mae_vit-mini-p4_1xb64-coslr-20e_cifar10.py'

model = dict(backbone=dict(masking=dict(shared=True)))
