_base_ = './vit-base-p16_8xb256-linear-coslr-90e_in100.py'

# Table 2: SimMIM's ViT, upstream's BEiTViT with a shared relative position bias.
model = dict(
    backbone=dict(
        type='BEiTViT',
        use_rel_pos_bias=False,
        use_shared_rel_pos_bias=True))

# Upstream's frozen_stages leaves the shared bias out, which a linear probe must not train.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(rel_pos_bias=dict(lr_mult=0.))))
