_base_ = 'mmpretrain::mae/mae_vit-large-p16_8xb512-amp-coslr-300e_in1k.py'

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

model = dict(backbone=dict(type='MaskedMAEViT', masking=dict(type='DPPMasking', tau=0.5)))
