_base_ = './umae_vit-large-p16_8xb128-amp-coslr-200e_in1k.py'

# ImageNet-100: class folders under data/imagenet100/train
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/imagenet100/',
        data_prefix='train',
        pipeline={{_base_.train_pipeline}},
    )
)
