_base_ = 'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-800e_in1k.py'

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

# Section 3.6: masked pixels at most 2 pixels from a visible one do not count in the loss.
model = dict(head=dict(type='BoundaryMAEHead', width_px=2, boundary_weight=0.0))
