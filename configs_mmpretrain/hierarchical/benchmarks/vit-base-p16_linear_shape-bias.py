# Table 2: shape bias of a linear probe by upstream's metric; then upstream's script
# tools/analysis_tools/shape_bias.py on csv_dir.
# tools/test.py THIS CHECKPOINT_OF_THE_PROBE --cfg-options test_evaluator.model_name=mae-ratio75
_base_ = 'mmpretrain::mae/benchmarks/vit-base-p16_8xb2048-linear-coslr-90e_in1k.py'

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

# github.com/bethgelab/model-vs-human/releases/download/v0.1/cue-conflict.tar.gz, unpacked
test_dataloader = dict(
    batch_size=32,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/cue-conflict',
        pipeline={{_base_.test_pipeline}},
    ),
)
test_evaluator = dict(
    _delete_=True, type='ShapeBiasMetric', csv_dir='work_dirs/shape_bias', model_name='mae')
