_base_ = './vit-base-p16_8xb256-linear-coslr-90e_in100.py'

model = dict(
    backbone=dict(arch='large', frozen_stages=24),
    neck=dict(input_features=1024),
    head=dict(in_channels=1024))
