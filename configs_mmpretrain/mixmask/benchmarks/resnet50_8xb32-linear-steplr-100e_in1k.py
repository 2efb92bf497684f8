_base_ = 'mmpretrain::mocov2/benchmarks/resnet50_8xb32-linear-steplr-100e_in1k.py'

# The stock linear probe of MoCo v2, 100 epochs. The import lets today's torch load checkpoints.
custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)
