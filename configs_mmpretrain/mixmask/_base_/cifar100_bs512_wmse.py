_base_ = './cifar100_bs512.py'

# The views of SimCLR, BYOL and SimSiam: those of W-MSE (Ermolov et al., 2021), whose settings of
# SimCLR and BYOL table 8 repeats. Its kNN takes 5 neighbours of the
# features as they are, with equal votes.
view_pipeline = [
    dict(
        type='RandomApply',
        transforms=[
            dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
        ],
        prob=0.8,
    ),
    dict(
        type='RandomGrayscale',
        prob=0.1,
        keep_channels=True,
        channel_weights=(0.2989, 0.587, 0.114),
    ),
    dict(
        type='RandomResizedCrop',
        scale=32,
        crop_ratio_range=(0.2, 1.0),
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='RandomFlip', prob=0.5),
]

train_pipeline = [
    dict(type='MultiView', num_views=2, transforms=[view_pipeline]),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

knn_hook = dict(projection=False, knn_k=5, knn_t=1e6, knn_normalize=False)
