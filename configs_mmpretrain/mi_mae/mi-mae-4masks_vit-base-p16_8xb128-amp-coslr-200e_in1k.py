# The control: four masks per image and no information terms.
_base_ = './mi-mae_vit-base-p16_8xb128-amp-coslr-200e_in1k.py'

model = dict(cross_weight=0.0, input_weight=0.0)
