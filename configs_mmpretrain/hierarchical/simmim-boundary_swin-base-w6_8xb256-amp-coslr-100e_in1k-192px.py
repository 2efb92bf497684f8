_base_ = 'mmpretrain::simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py'

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

# Section 3.6: masked pixels at most 4 pixels from a visible one do not count in the loss.
model = dict(head=dict(type='BoundarySimMIMHead', width_px=4, boundary_weight=0.0))
