_base_ = 'mmseg::mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py'

# ADE20K segmentation: mmsegmentation's UPerNet for MAE, with mmpretrain's own ViT, so that the
# checkpoint loads without conversion. Schedule, rates and layer decay (0.65) are mmsegmentation's;
# its constructor for layer decay knows its own backbones only, so the factors are spelt out.
custom_imports = dict(
    imports=['mim_plugins.mmpretrain', 'mmpretrain.models'], allow_failed_imports=False
)

model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VisionTransformer',
        arch='base',
        img_size=512,
        patch_size=16,
        drop_path_rate=0.1,
        out_indices=[3, 5, 7, 11],
        out_type='featmap',
        final_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.'),
    ),
)

optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={
            'backbone.cls_token': dict(lr_mult=0.65**13, decay_mult=0.0),
            'backbone.pos_embed': dict(lr_mult=0.65**13, decay_mult=0.0),
            'backbone.patch_embed.': dict(lr_mult=0.65**13),
            **{f'backbone.layers.{i}.': dict(lr_mult=0.65 ** (12 - i)) for i in range(12)},
        },
    ),
)
