# (b) Four masks, no information terms.
_base_ = './mi-mae_vit-mini-p4_1xb64-coslr-20e_cifar10.py'

model = dict(cross_weight=0.0, input_weight=0.0)
