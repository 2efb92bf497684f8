_base_ = 'mmpretrain::mae/benchmarks/vit-base-p16_8xb128-coslr-100e_in1k.py'

# Background challenge (Xiao et al., 2021): fine-tuned on ImageNet-9L with table 7's settings,
# tested on images of other backgrounds, e.g. --cfg-options
# test_dataloader.dataset.data_root=data/bg_challenge/mixed_rand

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

# 9 class folders under data/in9l/{train,val} and data/bg_challenge/<variant>/val
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/in9l/',
        data_prefix='train',
        pipeline={{_base_.train_pipeline}},
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/in9l/',
        data_prefix='val',
        pipeline={{_base_.test_pipeline}},
    )
)
test_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/bg_challenge/original/',
        data_prefix='val',
        pipeline={{_base_.test_pipeline}},
    )
)

data_preprocessor = dict(num_classes=9)
model = dict(head=dict(num_classes=9))
