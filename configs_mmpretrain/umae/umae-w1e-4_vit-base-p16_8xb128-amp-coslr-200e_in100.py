_base_ = './umae_vit-base-p16_8xb128-amp-coslr-200e_in100.py'

# lambda 1e-4: table 3 (ImageNet-100, its best) and appendix B.1.
model = dict(uniformity_weight=1e-4)
