# Diverse and disjoint visible sets: the four masks are DPPs that choose in turns.
_base_ = './mi-mae_vit-base-p16_8xb128-amp-coslr-200e_in1k.py'

model = dict(backbone=dict(masking=dict(base=dict(type='DPPMasking', tau=0.0))))
