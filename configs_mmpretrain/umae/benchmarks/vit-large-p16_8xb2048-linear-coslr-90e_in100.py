_base_ = '../../dppmask/benchmarks/vit-large-p16_8xb2048-linear-coslr-90e_in100.py'
