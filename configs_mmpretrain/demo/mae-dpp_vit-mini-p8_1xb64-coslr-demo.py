# The same with DPP masks: two arguments of the backbone.
_base_ = './mae-random_vit-mini-p8_1xb64-coslr-demo.py'

# After _base_: with an import first, mmengine takes this for another kind of config.
import os  # noqa: E402

model = dict(
    backbone=dict(masking=dict(type='DPPMasking', tau=float(os.environ.get('DEMO_TAU', 0.5))))
)
