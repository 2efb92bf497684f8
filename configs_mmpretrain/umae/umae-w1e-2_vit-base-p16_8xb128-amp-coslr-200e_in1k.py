_base_ = './umae_vit-base-p16_8xb128-amp-coslr-200e_in1k.py'

# lambda 1e-2: the official repository's script and README.
model = dict(uniformity_weight=1e-2)
