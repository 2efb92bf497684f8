# The terms on SimMIM, our extension: two masks per image at SimMIM's ratio 0.6, drawn on the
# images' device instead of in the data pipeline.
_base_ = 'mmpretrain::simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py'

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

model = dict(
    type='MISimMIM',
    masking=dict(
        type='ComplementaryMasking', num_masks=2, mask_ratio=0.6, mask_unit=32
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=192, crop_ratio_range=(0.67, 1.0)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]
# The stock config's batch of 2048 images by accumulation, with its learning rate: two masks per
# image make 256 masked images per GPU.
train_dataloader = dict(batch_size=128, dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(accumulative_counts=2)
