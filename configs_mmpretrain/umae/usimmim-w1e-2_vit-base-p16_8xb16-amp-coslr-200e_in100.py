_base_ = './usimmim_vit-base-p16_8xb16-amp-coslr-200e_in100.py'

# lambda 1e-2: appendix B.6.
model = dict(uniformity_weight=1e-2)
