"A catalog small enough for loaders that are built many times"
import pandas as pd
import pytest


@pytest.fixture(scope='session')
def small(catalog, few):
    "Four training identities with four images each, and the test images of `few`"
    train = catalog[catalog.split == 'train']
    train = train[train.pid.isin(train.pid.unique()[:4])].groupby('pid').head(4)
    return pd.concat([train, few], ignore_index=True)
