"""The layouts of data sets that tools/prepare_data.py writes and checks, by name."""

EXPORTED = ('imagefolder', 'ade20k', 'cifar')
VERIFIED = ('imagenet', 'imagefolder', 'list', 'cifar', 'ade20k', 'shards')
