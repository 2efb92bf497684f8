_base_ = 'mmpretrain::simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py'

# Upstream's own SimMIM with the uniformity term. Swin has no class token: the feature is the
# mean of the visible cells. The paper has no such run; lambda 1e-2 is ours.

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

model = dict(type='USimMIM', uniformity_weight=1e-2, token='mean')
