"""Differences between wiki languages: namespace names, number formats, months, script variants."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

# fmt: off
# Names of the namespaces Media, File and Category; a dump contains one name for each, but not its aliases.
_HIDDEN = {
    "ar": ("ملف", "صورة", "ميديا", "وسائط", "تصنيف"),
    "ca": ("Fitxer", "Imatge", "Categoria"),
    "cs": ("Soubor", "Média", "Kategorie"),
    "da": ("Fil", "Billede", "Kategori"),
    "de": ("Datei", "Bild", "Medium", "Kategorie"),
    "es": ("Archivo", "Imagen", "Medio", "Categoría"),
    "fa": ("پرونده", "تصویر", "مدیا", "رده"),
    "fi": ("Tiedosto", "Kuva", "Media", "Luokka"),
    "fr": ("Fichier", "Image", "Média", "Catégorie"),
    "he": ("קובץ", "תמונה", "מדיה", "קטגוריה"),
    "hu": ("Fájl", "Kép", "Média", "Kategória"),
    "id": ("Berkas", "Gambar", "Kategori"),
    "it": ("File", "Immagine", "Categoria"),
    "ja": ("ファイル", "画像", "メディア", "カテゴリ"),
    "ko": ("파일", "그림", "미디어", "분류"),
    "nl": ("Bestand", "Afbeelding", "Categorie"),
    "no": ("Fil", "Bilde", "Medium", "Kategori"),
    "pl": ("Plik", "Grafika", "Kategoria"),
    "pt": ("Ficheiro", "Arquivo", "Imagem", "Multimédia", "Mídia", "Categoria"),
    "ro": ("Fișier", "Fişier", "Imagine", "Categorie"),
    "ru": ("Файл", "Изображение", "Медиа", "Категория"),
    "sv": ("Fil", "Bild", "Kategori"),
    "tr": ("Dosya", "Resim", "Ortam", "Kategori"),
    "uk": ("Файл", "Зображення", "Медіа", "Категорія"),
    "vi": ("Tập tin", "Hình", "Phương tiện", "Thể loại"),
    "zh": ("文件", "檔案", "档案", "图像", "圖像", "图片", "圖片", "媒体", "媒體", "媒體檔案", "媒体文件",
           "分类", "分類"),
}
_TEMPLATE_NAMESPACES = frozenset((
    "template", "t", "vorlage", "modèle", "plantilla", "predefinição", "шаблон", "模板", "样板", "樣板", "틀", "قالب",
))
_MONTHS = {
    "de": "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
    "en": "January February March April May June July August September October November December",
    "es": "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
    "it": "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre",
    "pt": "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro",
    "ru": "января февраля марта апреля мая июня июля августа сентября октября ноября декабря",
    "ar": "يناير فبراير مارس أبريل مايو يونيو يوليو أغسطس سبتمبر أكتوبر نوفمبر ديسمبر",
}
# Separators of digit groups and of decimals, and the smallest number of digits that are grouped.
_NUMBERS = {
    "de": (".", ",", 4), "es": (" ", ",", 5), "fr": (" ", ",", 4), "it": (" ", ",", 4), "pt": (" ", ",", 5),
    "ru": (" ", ",", 5), "uk": (" ", ",", 5), "pl": (" ", ",", 5), "nl": (".", ",", 4), "sv": (" ", ",", 4),
    "tr": (".", ",", 4), "id": (".", ",", 4), "da": (".", ",", 4), "cs": (" ", ",", 4), "ca": (".", ",", 4),
    "ro": (".", ",", 4), "vi": (".", ",", 4), "fi": (" ", ",", 4), "no": (" ", ",", 4), "hu": (" ", ",", 4),
}
# Variants of a language that is written in several ways, each with those that replace it, nearest first. The key of the
# language itself is its main form, which has the order of MediaWiki.
_VARIANTS = {
    "zh": {
        "zh": ("zh-hans", "zh-hant", "zh-cn", "zh-tw", "zh-hk", "zh-sg", "zh-mo", "zh-my"),
        "zh-hans": ("zh-cn", "zh-sg", "zh-my"), "zh-hant": ("zh-tw", "zh-hk", "zh-mo"),
        "zh-cn": ("zh-hans", "zh-sg", "zh-my"), "zh-sg": ("zh-my", "zh-hans", "zh-cn"),
        "zh-my": ("zh-sg", "zh-hans", "zh-cn"), "zh-tw": ("zh-hant", "zh-hk", "zh-mo"),
        "zh-hk": ("zh-mo", "zh-hant", "zh-tw"), "zh-mo": ("zh-hk", "zh-hant", "zh-tw"),
    },
    "sr": {"sr": ("sr-ec", "sr-cyrl", "sr-el", "sr-latn"), "sr-ec": ("sr-cyrl",), "sr-el": ("sr-latn",)},
    "sh": {"sh": ("sh-latn", "sh-cyrl"), "sh-latn": (), "sh-cyrl": ()},
    "kk": {
        "kk": ("kk-cyrl", "kk-kz", "kk-latn", "kk-tr", "kk-arab", "kk-cn"),
        "kk-cyrl": ("kk-kz",), "kk-latn": ("kk-tr",), "kk-arab": ("kk-cn",),
    },
    "ku": {"ku": ("ku-latn", "ku-arab"), "ku-latn": (), "ku-arab": ()},
    "uz": {"uz": ("uz-latn", "uz-cyrl"), "uz-latn": (), "uz-cyrl": ()},
    "tg": {"tg": ("tg-cyrl", "tg-latn"), "tg-latn": ()},
    "iu": {"iu": ("ike-cans", "ike-latn"), "ike-cans": (), "ike-latn": ()},
    "shi": {"shi": ("shi-latn", "shi-tfng"), "shi-latn": (), "shi-tfng": ()},
    "gan": {"gan": ("gan-hans", "gan-hant"), "gan-hans": (), "gan-hant": ()},
    "crh": {"crh": ("crh-latn", "crh-cyrl"), "crh-latn": (), "crh-cyrl": ()},
}
# The words that make a page a redirect, as in MediaWiki's messages; each wiki also understands the first one.
_REDIRECTS = (
    "REDIRECT", "تحويل", "REDIRECCIÓ", "PŘESMĚRUJ", "OMDIRIGERING", "WEITERLEITUNG", "REDIRECCIÓN", "REDIRECCION",
    "تغییر_مسیر", "تغییرمسیر", "OHJAUS", "UUDELLEENOHJAUS", "REDIRECTION", "הפניה", "ÁTIRÁNYÍTÁS", "ALIH", "RINVIA",
    "RINVIO", "RIMANDO", "転送", "リダイレクト", "넘겨주기", "ㄴㄱㄴㄱ", "DOORVERWIJZING", "PATRZ", "PRZEKIERUJ", "TAM",
    "REDIRECIONAMENTO", "REDIRECIONAR", "REDIRECTEAZA", "ПЕРЕНАПРАВЛЕНИЕ", "ПЕРЕНАПР", "YÖNLENDİRME", "YÖNLENDİR",
    "ПЕРЕНАПРАВЛЕННЯ", "đổi", "重定向", "重新導向",
)
# fmt: on
REDIRECT = re.compile(rf"\s*[#＃](?:{'|'.join(_REDIRECTS)})\s*:?\s*\[\[", re.IGNORECASE)
"""Start of the text of a page that is a redirect, in any language: the word and a link."""

_CANONICAL_HIDDEN = ("File", "Image", "Media", "Category")
_SAME_LANGUAGE = {"simple": "en", "nb": "no", "nn": "no"}


@dataclass(frozen=True)
class Wiki:
    """The wiki of a dump.

    Attributes:
        language: language code; empty if the dump does not specify it.
        hidden: names of the namespaces whose links are not text (media, files, categories).
        template_namespaces: names of the namespace of templates, in lower case.
    """

    language: str = "en"
    hidden: frozenset[str] = field(default=frozenset())
    template_namespaces: frozenset[str] = _TEMPLATE_NAMESPACES

    @staticmethod
    def of(language: str, hidden: Iterable[str] = (), template_namespaces: Iterable[str] = ()) -> Wiki:
        """Describe the wiki of a dump with these names; the aliases of the language are added to them.

        Without a language, the aliases of all languages are added.
        """
        language = language.casefold().replace("_", "-")
        language = _SAME_LANGUAGE.get(language, language)
        known = [_HIDDEN.get(language.partition("-")[0], ())] if language else list(_HIDDEN.values())
        aliases = (name for names in known for name in names)
        templates = _TEMPLATE_NAMESPACES.union(name.casefold() for name in template_namespaces)
        return Wiki(language, frozenset((*_CANONICAL_HIDDEN, *hidden, *aliases)), templates)

    @property
    def base_language(self) -> str:
        """The language without its region or script: `zh` of `zh-tw`."""
        return self.language.partition("-")[0]

    def month(self, number: int) -> str:
        """Return the name of a month as written in dates, counted from 1; English for languages not in the table."""
        return _MONTHS.get(self.base_language, _MONTHS["en"]).split()[number - 1]

    def variants(self, variant: str | None = None) -> tuple[str, ...]:
        """Return the codes of the language's variants, the chosen one first; empty if it has none."""
        known = _VARIANTS.get(self.base_language)
        if known is None:
            return ()
        main = self.base_language
        wanted = variant or main
        return tuple(dict.fromkeys((wanted, *known.get(wanted, ()), *known[main], *known)))

    def number(self, digits: str) -> str:
        """Write a number in the language's format: `1234.5` is `1,234.5` in English and `1.234,5` in German."""
        sign = digits[:1] if digits[:1] in "+-−" else ""
        whole, point, rest = digits[len(sign) :].partition(".")
        if not whole.isdecimal() or (point and not rest.isdecimal()):
            return digits
        group, separator, least = _NUMBERS.get(self.base_language, (",", ".", 4))
        if len(whole) >= least:
            whole = f"{int(whole):,}".replace(",", group) if whole[0] != "0" else whole
        return f"{sign}{whole}{separator if point else ''}{rest}"


def variants_of_all_languages() -> frozenset[str]:
    """Return the codes of all variants."""
    return frozenset(code for known in _VARIANTS.values() for code in known)
