"""A recipe may say what it changes of another one."""

import pytest

from softvq.errors import UserError
from softvq.recipe import TokenizerRecipe, load_recipe


def write(folder, **recipes) -> str:
    """Write recipes; the path of the last."""
    for name, text in recipes.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(path)


def test_a_base_is_changed_where_the_recipe_says_so(tmp_path):
    path = write(
        tmp_path,
        middle="base: softvq-l-64\nmodel:\n  tokens: 32\n  tau: 0.1\ntrain:\n  batch: 8\n",
        top="base: middle.yaml\nmodel:\n  tokens: 16\n",
    )
    recipe = load_recipe(TokenizerRecipe, path, ["train.batch=4"])
    base = load_recipe(TokenizerRecipe, "softvq-l-64", [])
    assert (recipe.model.tokens, recipe.model.tau, recipe.train.batch) == (16, 0.1, 4)
    base.model.tokens, base.model.tau, base.train.batch = 16, 0.1, 4
    assert recipe == base


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        ({"a": "base: b.yaml", "top": "base: a.yaml"}, "b.yaml: no such recipe file"),
        ({"a": "base: top.yaml", "top": "base: a.yaml"}, "top.yaml: is in the end its own base"),
        ({"top": "base: ../{name}/top.yaml"}, "top.yaml: is in the end its own base"),
        ({"a": "model:\n  tokkens: 3", "top": "base: a.yaml"}, "a.yaml: unknown key 'model.tokk"),
        ({"a": "model: [", "top": "base: a.yaml"}, "a.yaml: not valid YAML"),
        ({"a": "- model", "top": "base: a.yaml"}, "a.yaml: not a recipe"),
    ],
)
def test_faults_are_said_of_the_file_they_stand_in(recipes, message, tmp_path):
    path = write(tmp_path, **{k: v.format(name=tmp_path.name) for k, v in recipes.items()})
    with pytest.raises(UserError, match=message):
        load_recipe(TokenizerRecipe, path, [])
