# Table 1: a linear probe of ImageNet-1K, tested without further training on one of its variants.
# python -m mim_plugins variant-labels data/imagenet/train data/imagenet-r
# tools/test.py THIS CHECKPOINT_OF_THE_PROBE
#     --cfg-options test_dataloader.dataset.data_root=data/imagenet-r/
_base_ = 'mmpretrain::mae/benchmarks/vit-base-p16_8xb2048-linear-coslr-90e_in1k.py'

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

test_dataloader = dict(
    batch_size=128,
    dataset=dict(
        data_root='data/imagenet-v2/',
        split='',
        ann_file='meta/val.txt',
        data_prefix='',
    ),
)
