_base_ = './umae_vit-base-p16_8xb128-amp-coslr-200e_in100.py'

# The paper's baseline without masks: an autoencoder, its loss over all patches.
model = dict(uniformity_weight=0.0, backbone=dict(mask_ratio=0.0))
