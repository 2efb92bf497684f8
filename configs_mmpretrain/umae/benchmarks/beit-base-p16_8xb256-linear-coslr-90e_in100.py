_base_ = './vit-base-p16_8xb256-linear-coslr-90e_in100.py'

# Table 2: SimMIM's ViT, upstream's BEiTViT with a shared relative position bias.
model = dict(
    backbone=dict(
        type='BEiTViT',
        use_rel_pos_bias=False,
        use_shared_rel_pos_bias=True))
