# Each term alone: information between latents under different masks.
_base_ = './mi-mae_vit-mini-p4_1xb64-coslr-20e_cifar10.py'

model = dict(input_weight=0.0)
