# The same with DPP masks: two arguments of the backbone.
_base_ = './mae-random_vit-mini-p8_1xb64-coslr-demo.py'

model = dict(backbone=dict(masking=dict(type='DPPMasking', tau={{'$DEMO_TAU:0.5'}})))
