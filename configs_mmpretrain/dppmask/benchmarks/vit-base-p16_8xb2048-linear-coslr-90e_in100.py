_base_ = 'mmpretrain::mae/benchmarks/vit-base-p16_8xb2048-linear-coslr-90e_in1k.py'

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

# ImageNet-100: class folders under data/imagenet100/train and data/imagenet100/val
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/imagenet100/',
        data_prefix='train',
        pipeline={{_base_.train_pipeline}},
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/imagenet100/',
        data_prefix='val',
        pipeline={{_base_.test_pipeline}},
    )
)
test_dataloader = val_dataloader

data_preprocessor = dict(num_classes=100)
model = dict(head=dict(num_classes=100))

auto_scale_lr = dict(base_batch_size=16384)
