_base_ = './umae_vit-tiny-p4_8xb512-amp-coslr-2000e_cifar10-32px.py'

# lambda 1e-2: the official repository's script and README.
model = dict(uniformity_weight=1e-2)
