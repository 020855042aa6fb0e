#!/bin/sh
# An environment with lmms-eval beside the current one: scripts/lmms_eval_env.sh VENV
#
# It sees the current environment's packages (torch above all) and adds what lmms-eval imports, each without what that
# would pull in: lmms-eval asks for a torchvision, which is a torch of gigabytes, and does not need it for this.
set -eu
python=${PYTHON:-python}
"$python" -m venv "$1"
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    > "$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
"$1/bin/python" -m pip install --no-deps "lmms_eval==0.7.3" \
    accelerate aiohappyeyeballs aiohttp aiosignal attrs chardet colorama dataproperty datasets dill \
    et_xmlfile evaluate frozenlist ftfy hf_transfer httpx jsonlines latex2sympy2 loguru lxml \
    mbstrdecoder multidict multiprocess nltk numexpr openai openpyxl pandas pathvalidate portalocker \
    propcache pycocoevalcap pydantic pytablewriter python-dateutil python-dotenv pytz sacrebleu \
    scikit-learn sentencepiece sympy tabledata tabulate tcolorpy tenacity terminaltables tiktoken \
    tqdm-multiprocess typepy wrapt xxhash yarl zss
"$1/bin/python" -m pip install --no-deps -e "$(dirname "$0")/.."
"$1/bin/python" -c 'from lmms_eval.models import get_model_manifest as found; print(found("xgenvideo"))'
