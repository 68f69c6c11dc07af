"""Rules for templates whose words belong to the surrounding text; all other templates are dropped.

Names are in lower case, with spaces. A wiki uses the common table and the table of its language.
"""

from __future__ import annotations

import re

from kdcore_preparation.readers.wikipedia.template_rules import (
    Rule,
    as_of,
    bible_verse,
    centuries,
    century,
    changed_case,
    chemical_formula,
    conversion,
    date_of_template,
    east_asian_date,
    fixed,
    formatted_number,
    fraction,
    height,
    japanese,
    joined,
    linked_language,
    local_date,
    measured_value,
    musical_sign,
    name_itself,
    named_variants,
    phonetic,
    phonetic_pieces,
    power_of_ten,
    quantity,
    rule_of,
    ship,
)

_Entry = int | str | Rule


def _table(*groups: tuple[str, _Entry]) -> dict[str, Rule]:
    """Build a table from groups of names separated by semicolons; each group has one rule."""
    table: dict[str, Rule] = {}
    for names, entry in groups:
        rule = rule_of(entry) if isinstance(entry, (int, str)) else entry
        table.update((name.strip(), rule) for name in names.split(";"))
    return table


_FUNCTIONS = _table(
    (
        "formatnum; zahlenformat; formatnombre; formatonúmero; formatonumero; formatanum; formatarnum; "
        "форматчисла; 数字格式",
        formatted_number,
    ),
    ("#formatdate; #dateformat", changed_case(str)),
    ("lc", changed_case(str.lower)),
    ("uc", changed_case(str.upper)),
    ("lcfirst", changed_case(lambda text: text[:1].lower() + text[1:])),
    ("ucfirst", changed_case(lambda text: text[:1].upper() + text[1:])),
)

_COMMON = _table(
    # languages and scripts
    ("lang; langx; wikt-lang; rtl-lang; ltr-lang; script; lang-x; lang-xx; langue", "{text|2}"),
    ("transl; transliteration; translit; tlit; xlit", "{-1}"),
    ("unicode; polytonic; hebrew; arabic; nastaliq; nihongo2; runic; transla", 1),
    ("music; music symbol", musical_sign),
    ("linktext", joined()),
    ("zh; lang-zh; zh2; chinese", named_variants("1", "c", "s", "t", "hp", "p", "w", "tp", "j", "y", "poj", "l")),
    (
        "korean; ko-hhrm; lang-ko; ko",
        named_variants("1", "2", "hangul", "hanja", "rr", "mr", "lit", between=", "),
    ),
    ("nihongo; nihongo-s; nihongo title; nihongo core", japanese),
    ("nihongo3; nihongo-p", "{1}< ({2}<, {3}>)>"),
    ("nihongo foot; nihongo krt", 1),
    ("literal translation; lit; lit.; literally", "lit. {1}"),
    ("gloss; single quote", "'{1}'"),
    ("langnf", 2),
    # transcriptions
    ("ipa; api; afi; ipa all; ipa-all; lautschrift; мфа", phonetic),
    ("ipalink; ipa link; ipasym; ipa soundbox; pronunciation; ipalinksp; pron; phon", 1),
    ("ipablink; ipa blink", "[{1}]"),
    ("ipaslink; ipa slink", "/{1}/"),
    ("angbr; angbr ipa; angle br; grapheme", "⟨{1}⟩"),
    ("respell; respelling", joined("-")),
    ("audio; audio-ipa; audio-nohelp", 2),
    # unchanged words
    (
        "nowrap; nobr; nobreak; nobold; noitalic; no italic; noitalics; normal; small; smaller; big; larger; "
        "large; sup; sub; mvar; math; var; code; mono; monospace; tt; kbd; samp; smallcaps; sc; sc1; sc2; "
        "small caps; allcaps; em; strong; bold; b; italic; italics; i; underline; ins; emphasis; abbr; "
        "abbrv; abbreviation; abbrlink; tooltip; hover title; sic; as written; proper name; visible anchor; "
        "vanchor; va; not typo; typo; center; centre; left; block indent; blockindent; poem; poemquote; "
        "poem quote; font; plainlist; flatlist; plain list; citation needed span; "
        "cns; fact span; clarify span; when span; dubious span; term; defn; glossary term; annotated link; "
        "chem name; chemical name; strikethrough; serif; sans-serif; text; flag; flagcountry; flag country; "
        "flagu; flagdeco link; nts; number table sorting; ntsp; rh; vr; highlight; no wrap; dfn; definition; "
        "cuneiform; hiero; big text; larger text; refnec; sronly; screen reader-only; overline; overbar; "
        "legend inline; noflag; title case; midsize",
        "{text|content|1}",
    ),
    (
        "hovertitle; h:title; popup; font color; fontcolor; color; colour; coloured text; colored text; align; aligned",
        2,
    ),
    ("columns-list; col-list; resize; font size; fontsize; fs; rotate; text color; color box text; transform", "{-1}"),
    ("sort; sort-under; hs-text; sorttext; sortkey text; hid", "{2|1}"),
    ("sortname; sort name; s-name", "{1} {2}"),
    ("key press; keypress; key combination", joined("+")),
    ("not a typo; notatypo; as is; typo; gaps", joined()),
    # links
    ("ill; interlanguage link; interlanguage link multi; link-interwiki; ill2; illm; iw2", linked_language),
    ("slink; section link; seclink; sectionlink; section-link", "{1}< § {2}>"),
    ("anl; plink; format link; format linkr; vlink; pagelink; lk; mlink", 1),
    ("isbn; isbnt", "ISBN {1}"),
    ("issn", "ISSN {1}"),
    ("oclc", "OCLC {1}"),
    ("ietf rfc; rfc", "RFC {1}"),
    ("bibleverse; bible verse; bibleref; bibleref2; biblesource; bible ref; bv", bible_verse),
    ("quran; qref; cite quran; quran-usc", "Quran {1}<:{2}>"),
    # quotations
    (
        "quote; blockquote; block quote; bquote; cquote; quotation; rquote; pull quote; pullquote; "
        "quote box; quotebox; quote-box; centered pull quote; long quote; longquote; cita; quote frame; "
        "quote without source; quote2; talk quote; letter; cquotation; quotation1; verse; inline quote; "
        "epigraph; imagequote; quoteframe",
        "{text|quote|content|quotetext|1|2}",
    ),
    ("rquote; right quote", "{text|quote|2|1}"),
    ("verse translation; text and translation; verse translation2", "{1}\n\n{2}"),
    ("translated blockquote", "{text|1}"),
    # quantities
    (
        "convert; cvt; convinfobox; converter; convertir; converti; convertire; conversion; convertx; cv; "
        "تحويل; 단위 변환; 換算; convers",
        conversion,
    ),
    ("height; weight; person height; person weight", height),
    ("val; value; valt; val2; physconst", measured_value),
    (
        "chem; chem2; ce; chemical formula; fchim; formule chimique; formule; chimie; chemf; химия; chem/link",
        chemical_formula,
    ),
    ("frac; fraction; sfrac; tfrac; bruch; fract; frac2", fraction),
    ("e; esp; sn; exp10; e10", power_of_ten),
    ("10^", lambda arguments: f"10{power_of_ten(arguments)[3:]}" if arguments.plain("1") else ""),
    ("sqrt; radic; root; square root", "√{1}"),
    ("su; subsup; sup sub", "{p}{b}"),
    ("pi; math pi", fixed("π")),
    ("formatnum; number; num; format price; nf; decimals; val number", lambda each: each.wiki.number(each.plain("1"))),
    ("ordinal to word; spellnum; spell", 1),
    ("us$; usd; us dollar; u.s. dollars; dollar", "US${1}"),
    ("a$; aud", "A${1}"),
    ("c$; cad; can$", "C${1}"),
    ("nz$; nzd", "NZ${1}"),
    ("hk$; hkd", "HK${1}"),
    ("£; gbp; pound sterling; pounds; £sd", "£{1}"),
    ("€; euro; eur; euros", "€{1}"),
    ("¥; jpy; yen", "¥{1}"),
    ("₹; inr; indian rupee; indian rupees; rupee; inrconvert; inrc", "₹{1}< {2}>"),
    ("currency", "{1}< {2}>"),
    ("nmi", "{1} nmi"),
    ("nuclide; nuclide2; isotope", "{1}-{2}"),
    ("railgauge; track gauge; rail gauge", 1),
    ("ruby", "{1}< ({2})>"),
    ("long ton", "{1} long tons"),
    # dates
    ("as of; asof; as of-inline", as_of),
    ("circa; c.; ca.; circa.; ca", "c. {1}< – {2}>"),
    ("floruit; fl.; fl; flourished", "fl. {1}<–{2}>"),
    ("reign; r.; ruled", "r. {1}<–{2}>"),
    ("born; b.", "b. {1}"),
    ("died; d.", "d. {1}"),
    (
        "start date; end date; birth date; death date; start date and age; end date and age; "
        "birth date and age; bda; birth-date; dob; dda; death date and age; film date; dts; "
        "date table sorting; launch date; date of birth; birth date and age2; release date; start-date; "
        "end-date; start and end dates; birth year and age; death-date; birth-date and age; "
        "death-date and age; date",
        date_of_template(day_first=False),
    ),
    ("oldstyledate; old style date; osd", "{1}< (O.S. {3})> {2}"),
    ("bce", "{1} BCE"),
    ("bc", "{1} BC"),
    ("ce.; common era", "{1} CE"),
    # names
    ("hms", ship("HMS")),
    ("uss", ship("USS")),
    ("ss", ship("SS")),
    ("rms", ship("RMS")),
    ("ms", ship("MS")),
    ("mv", ship("MV")),
    ("hmas", ship("HMAS")),
    ("hmcs", ship("HMCS")),
    ("sms", ship("SMS")),
    ("usns", ship("USNS")),
    ("uscgc", ship("USCGC")),
    ("ins2", ship("INS")),
    ("jds", ship("JDS")),
    ("ship", "{1} {2}"),
    ("sclass; sclass-; sclass2; sclass2-; ship class", "{1}-class< {2}>"),
    ("post-nominals; postnominals; post nominals; post-nom; postnom", joined(", ")),
    ("hlist; flat list; cslist; comma separated entries; enum", joined(", ")),
    ("ubl; unbulleted list; ubli; blist; bulleted list; bulletedlist; ordered list; ublist; olist", joined("\n\n")),
    # characters
    ("snd; spnd; spaced ndash; spaced en dash; dash; space-dash; sndash; snds; spndash", fixed(" – ")),
    ("ndash; endash; en dash; –", fixed("–")),
    ("mdash; emdash; em dash; —; em-dash", fixed("—")),
    ("spaced mdash; smd; spaced em dash; emd", fixed(" — ")),
    (
        "nbsp; space; spaces; sp; thinsp; thin space; hair space; nnbsp; ensp; emsp; pad; br; break; brk; crlf; 0; 00",
        fixed(" "),
    ),
    ("·; dot; middot; dotsep; bull; bullet; •; ,; bold middot; •w; ·w; bold dot; interpunct", fixed(" · ")),
    ("!", fixed("|")),
    ("=; equals", fixed("=")),
    ("'; apostrophe; apos; `", fixed("'")),
    ("'s; 's-", fixed("'s")),
    ('"; \'"; " \'; quote mark', fixed('"')),
    ("' \"", fixed("'\"")),
    ("pipe; vert", fixed("|")),
    ("(; lbrace; ((", fixed("{")),
    (")); rbrace", fixed("}")),
    ("sharp; music sharp", fixed("♯")),
    ("flat; music flat", fixed("♭")),
    ("natural", fixed("♮")),
    ("times; ×", fixed("×")),
    ("minus", fixed("−")),
    ("sect; section sign", fixed("§")),
    ("okina; 'okina; wg apostrophe; hamza; ayin", fixed("ʻ")),
    ("degree; deg", fixed("°")),
    ("kern; shy; zwnj; zwj; zwsp; wbr; smallsup; -\\", "{1}"),
    ("number sign; no.; numero; numero sign", "№ {1}"),
    ("prime", "{1}′"),
    ("pprime", "{1}″"),
)

_PATTERNS: list[tuple[re.Pattern[str], Rule]] = [
    (re.compile(r"lang-[a-z]{2,3}\d?(?:[-–][\w-]+)?"), rule_of("{text|1}")),
    (re.compile(r"ipac-[\w-]+"), phonetic_pieces),
    (re.compile(r"ipa[- ][a-z]{2,3}(?:-[\w-]+)?"), rule_of(1)),
    (re.compile(r"script/[\w -]+"), rule_of(1)),
    (re.compile(r"(?:link|ilh|internal link helper)[-/][a-z-]{2,}"), rule_of("{3|d|text|1}")),
]

_GERMAN = _table(
    (
        "zitat; zitat-de; zitat-en; zitat-fr; zitat-it; zitat-es; zitat-la; zitat-ru; zitat-pt; zitat-nl; "
        "zitat-pl; zitat-grc; zitat-ja; zitat-zh",
        "{text|1}",
    ),
    ('"', "„{text|1}“"),
    ("' ", "‚{1}‘"),
    (
        "nowrap; nobr; polytonisch; αβγ; hebr; arab; deva; fett; kapitälchen; optional; unicode; text; spaltenliste",
        "{text|1}",
    ),
    (
        "bausteindesign; mehrspaltig; tooltip; kursiv; gesperrt; ungesperrt; hochgestellt; tiefgestellt; sortdate",
        "{text|1}",
    ),
    ("dezimaltrenner; zahl; formatnum; format zahl", lambda each: each.wiki.number(each.plain("1"))),
    ("höhe", "{1} m"),
    ("einheit; messwert; maß; wert", quantity),
    ("datum; date", local_date(" ")),
    ("§", "§ {text|1}"),
    ("art.", "Art. {text|1}"),
    ("lang", "{text|2}"),
    ("farbe; farbtext; schriftfarbe", "{-1}"),
    ("sortkeyname", "{1} {2}"),
    ("personname; personzelle", "{1} {2}"),
    ("transkription; transliteration; umschrift", "{-1}"),
    ("audio; höreinbindung", 2),
    ("ipa; lautschrift", phonetic),
    ("chf; schweizer franken", "{1} CHF"),
    ("abkürzung; abk; abk.", 1),
    ("ligatur; initial; anker text", 1),
    ("bibel; bb; b", "{1} {2}<,{3}>"),
    ("bl; 0; leerzeichen", fixed(" ")),
    ("zh", named_variants("1", "c", "v", "kurz", "lang", "p", between=", ")),
    ("koreanisch; ko", named_variants("1", "hangul", "hanja", "rr", between=", ")),
)
_GERMAN_PATTERNS = [  # {{enS|...}}, {{laS|...}}
    (
        re.compile(
            "(?:ar|bg|ca|cs|cy|da|de|el|en|es|et|eu|fa|fi|fr|ga|grc|he|hi|hr|hu|hy|id|is|it|ja|ka|kk|ko|la|lt|lv|mk|mn|nl|"
            "no|pl|pt|ro|ru|sa|sk|sl|sq|sr|sv|ta|th|tr|uk|ur|uz|vi|yi|zh)s"
        ),
        rule_of("{text|1}< ({d})>"),
    )
]

_FRENCH = _table(
    ("unité; nombre; nb; unité/2; val; tmp; unite; nombre de; num", quantity),
    (
        "date; date-; date de naissance; date de décès; date naissance; date décès; date sport; date rapide",
        local_date(" "),
    ),
    ("s; s-; siècle; s mini; -s; -s-; s-?", century),
    ("sp; sp-; -sp; -sp-; s2", centuries),
    ("av jc; av. j.-c.; avjc; av j-c; -jc; av jc-", fixed("av. J.-C.")),
    ("ap jc; ap. j.-c.; apjc", fixed("apr. J.-C.")),
    ("er; ers; re; res; nd; nde; ème; e; es; ère; ères", lambda each: each.plain("1") or each.name),
    (
        "exp; ind; indice; petit; grand; nobr; souligner; surligner; texte; abréviation; "
        "abréviation discrète; abr; abrd; refnec; référence nécessaire; référence à confirmer; "
        "passage non neutre; pas clair; pertinence détail; quand; incise; lien web seul; sc; "
        "petites capitales; rom; rom-maj; rom-min; citation courte; souverain2; souverain; souverain-; "
        "souverain3; pas d'italique; italique; gras; sigle; inter-langue; c; terme défini; passage évasif; "
        "précision nécessaire; vérification siècle",
        "{texte|text|1}",
    ),
    ("refsou; référence souhaitée; refinc; référence incomplète", "{1}"),
    ("langue; lang", "{texte|text|2}"),
    (
        "citation; cit; guil; guillemets; citation étrangère; citation bilingue; début citation; cita",
        "« {citation|texte|1} »",
    ),
    ("citation bloc; vers; poème; extrait", "{texte|text|1}"),
    ("incise", "– {1} –"),
    ("n°; numéro; no; nº", lambda each: f"no {each.plain('1')}".strip()),
    ("p.; page; pp.", "p. {1}"),
    ("vol.", "vol. {1}"),
    ("chap.", "chap. {1}"),
    ("m.", fixed("M.")),
    ("mme", fixed("Mme")),
    ("mlle", fixed("Mlle")),
    ("dr", fixed("Dr")),
    ("mgr", fixed("Mgr")),
    ("me", fixed("Me")),
    ("st", fixed("St")),
    ("ste", fixed("Ste")),
    ("ier", fixed("Ier")),
    ("ire", fixed("Ire")),
    ("heure", "{1} h< {2}>< min {3} s>"),
    ("durée", "{1} h< {2}>"),
    ("lien", "{texte|trad court|fr|1}"),
    ("japonais", "{1}< ({2}<, {3}>)>"),
    ("chinois", named_variants("1", "s", "t", "p", between=" ; ")),
    ("api; api-; prononciation; phonétique; apis", phonetic),
    ("convertir; conversion", conversion),
    ("km/h; km2", quantity),
    ("%", "{1} %"),
    ("euro; euros; €", "{1} €"),
    ("+; plus", fixed("+")),
    ("noms; ordinal", 1),
)
_FRENCH_PATTERNS: list[tuple[re.Pattern[str], Rule]] = [
    (re.compile(r"[ivxlcdm]+(?:er|re|e|ème)(?: siècle)?(?: av\. j\.-c\.)?"), name_itself),
    (re.compile(r"\d+(?:er|re|e|ers|res|es|nd|nde)"), name_itself),
]

_SPANISH = _table(
    ("unidad; número; numero; num; cifra; u", quantity),
    (
        "siglo",
        lambda each: (
            " ".join(
                filter(
                    None,
                    (
                        "siglo" if "1" not in each.words[2:3] else "",
                        each.plain("1"),
                        "a. C." if each.plain("2") == "a" else "",
                    ),
                )
            )
            if each.plain("1")
            else ""
        ),
    ),
    ("fecha; date; fecha de inicio; fecha de nacimiento; fecha de fallecimiento", local_date(" de ")),
    (
        "esd; versalita; versalitas; cita requerida; subíndice; superíndice; nowrap; nobr; abreviatura; "
        "nobold; resaltar; tachado; redirige aquí texto; may; minúscula; listaref texto; nihongo2",
        "{texto|text|1}",
    ),
    (
        "cita; cita textual; cuadro de cita; cita destacada; citación; cita bíblica texto; quote; cquote",
        "{texto|cita|quote|1}",
    ),
    ("afi; ipa; api", phonetic),
    ("convertir", conversion),
    ("a. c.; ac; a.c.", fixed("a. C.")),
    ("d. c.; dc; d.c.", fixed("d. C.")),
    ("enlace interlingüístico; ill; il; enlace artículo", "{lt|texto|1}"),
    ("bandera2; bandera; geodatos", "{1}"),
    ("traducción; trad", "{1}"),
    ("transliteración", "{-1}"),
    ("euros", "{1} €"),
)
_ITALIAN = _table(
    ("m; unità; unità di misura; misura; valore; um; num", quantity),
    ("citazione; quote; citazione necessaria; cit; citazione2; epigrafe; q", "{testo|text|1}"),
    (
        "maiuscoletto; tutto attaccato; nowrap; senza fonte; chiarire; tooltip; abbr; simbolo testo; nobr; "
        "sfondo; evidenzia; citazione testo; cn; non chiaro; apice; pedice",
        "{testo|text|1}",
    ),
    ("ipa; afi; pronuncia", phonetic),
    ("converti; convert", conversion),
    ("sec; secolo; sec.", "{1} secolo"),
    ("ill; link interlingue; interprogetto link", "{lt|testo|1}"),
    ("nihongo; giapponese", japanese),
    ("cinese", named_variants("1", "t", "s", "p", between=", ")),
    ("data; data di nascita; data di morte", local_date(" ")),
    ("bandiera testo; naz; bandiera nazionale", "{1}"),
    ("exp", "{1}"),
    ("euro", "{1} €"),
)
_PORTUGUESE = _table(
    ("fmtn; num; unidade; valor; número", quantity),
    ("séc; século; sec; seculo", "século {1}"),
    (
        "dtlink; data; dni; data de nascimento; data de falecimento; morte; nascimento; dtext; datalink",
        local_date(" de "),
    ),
    ("citação; quote; citar; citação2; caixa de citação; quote2; citação bloco; quadro de citação", "{texto|text|1}"),
    ("afi; ipa", phonetic),
    ("converter; convert; convertir", conversion),
    ("japonês; nihongo; nihongo2", japanese),
    (
        "lknb; pb; versalete; versaletes; nowrap; carece de fontes2; dica; abreviatura; "
        "referência necessária; nobr; carece de fonte; tooltip; sem quebra; ilc texto",
        "{texto|text|1}",
    ),
    ("ill; ilc; link interlínguas; ligação interlínguas", "{lt|texto|1}"),
    ("a.c.; ac", fixed("a.C.")),
    ("d.c.; dc", fixed("d.C.")),
    ("pepb; pe2br; ptbr; pepbr", "{1}/{2}"),
    ("euro; €", "{1} €"),
)
_RUSSIAN = _table(
    ("num; число; ч; formatnum; nums; num1; единица; ед", quantity),
    (
        "s; nobr; nowrap; неразрывный текст; comment; подсказка; abbr; капс; уточнить; якорь текст; "
        "подчёркнуто; sup; sub; дп; tooltip; подст; курсив; кн; кап; капитель; нет в источнике; нет аи 2; "
        "малый; мелкий; smaller",
        "{текст|text|1}",
    ),
    (
        "цитата; quote; врезка цитата; цитата2; эпиграф; начало цитаты; quote box; врезка; ц; цитатник",
        "{текст|цитата|quote|1}",
    ),
    ("дата; date; дата рождения; дата смерти; дд; датарождения", local_date(" ")),
    (
        "нп; нп1; нп2; нп3; нп4; нп5; не переведено; не переведено 2; не переведено 3; не переведено 4; "
        "не переведено 5; iw; ill; не переведено 1; нп6",
        "{2|1}",
    ),
    ("мфа; ipa; произношение", phonetic),
    ("нихонго; nihongo; японский", japanese),
    ("convert; конвертировать; перевод единиц", conversion),
    ("кит; китайский; kit; zh", named_variants("1", "t", "s", "p", between=", ")),
    ("до н. э.; до н.э.", fixed("до н. э.")),
    ("н. э.; н.э.", fixed("н. э.")),
    ("ударение; акут", "{1}"),
    ("век; столетие", "{1} век"),
    ("год; г", "{1} год"),
    ("переведено; перевод; пер", "{1}"),
    ("—; тире; -- ; –", fixed(" — ")),
    ("км²; км2", "{1} км²"),
    ("тыс; тыс.", "{1} тыс."),
    ("млн; млн.", "{1} млн"),
)
_RUSSIAN_PATTERNS = [(re.compile(r"lang-[a-z]{2,3}2?"), rule_of("{text|1}"))]
_JAPANESE = _table(
    (
        "読み仮名; 読み仮名 ruby不使用; 読み; よみがな; 振り仮名; ふりがな; 読み仮名ruby不使用; ルビ; ruby; "
        "ruby-ja; 振仮名; 読み仮名2",
        "{1}<（{2}）>",
    ),
    ("仮リンク; ill", "{label|lt|1}"),
    (
        "補助漢字フォント; jis2004フォント; jis90フォント; cp932フォント; 拡張漢字; unicodeフォント; "
        "要出典範囲; 誰範囲; いつ範囲; 要検証範囲; どれ範囲; 要説明範囲; 独自研究範囲; 疑問点範囲; small; "
        "sc; vertical; 縦書き; 旧字体; 中国語版にあわせない; jis2004; 外字; 環境依存文字; 要追加記述範囲; "
        "信頼性要検証範囲; 内容過剰範囲; 括弧; 縦中横; 右; 左; 中央; 大文字; 圏点; ウィキ年",
        1,
    ),
    ("lang; lang2; 言語", "{text|2}"),
    ("quotation; quote; 引用; 引用文; cquote; 行内引用; 囲み引用", "{text|引用|quote|1}"),
    ("convert; 換算; 単位", conversion),
    ("date; 日付; 年月日; 生年月日; 没年月日; 生年月日と年齢; 死亡年月日と没年齢", east_asian_date("年月日")),
    ("nowrap; 改行禁止; nobr", 1),
    ("ipa; 国際音声記号", phonetic),
    ("zh; 中国語", named_variants("1", "t", "s", "p", between="、")),
    ("韓国語; korean", named_variants("1", "hangul", "hanja", between="、")),
    ("en; 英語", "{1}"),
    ("円", "{1}円"),
)
_JAPANESE_PATTERNS = [(re.compile(r"lang-[a-z]{2,3}(?:-short)?"), rule_of("{text|1}"))]
_CHINESE = _table(
    ("lang; lang2", "{text|2}"),
    (
        "ilh; le; link-interwiki; 跨語言連結; 跨语言链接; ill; liw; 內部連結助手; internal link helper",
        "{3|text|lt|zh|1}",
    ),
    ("tsl; translink; 多語言連結; 多语言链接; tsll", "{4|3}"),
    ("ruby; ruby-ja; ruby-zh; 注音; ruby-zh-b; ruby-zh-p; 振假名; ruby-py", "{1}<（{2}）>"),
    (
        "僻字; 專名; 专名; 书名; 書名; 專名號; 专名号; 書名號; nobr; nowrap; 拼音; pinyin; 來源請求; "
        "来源请求; 來源請求範圍; uline; 缺字; 缺字描述; 黑體; 楷體; 楷体; 异体字; 異體字; zhwp; 標楷體; 小; "
        "kai; 原創研究範圍; cnspan; 不換行; 粗體; 著重號",
        "{text|1}",
    ),
    ("bpmfsp; zy; 註音; zhuyin; bopomofo; 粵拼; jyutping; 台羅; 白話字; 汉语拼音; 漢語拼音", 1),
    ("quote; cquote; 引文; 引用; rquote; 引言; 引用文; 古文; quotation; 文言文", "{text|content|quote|1}"),
    ("bd", "（{1}{2}<—{3}{4}>）"),
    ("日期; date; 年月日; 出生日期; 出生日期和年龄; 出生日期和年齡; 死亡日期; bdate", east_asian_date("年月日")),
    ("convert; 换算; 換算; 單位換算", conversion),
    ("jpn; 日語; 日语", named_variants("1", "j", "hg", "rm", between="，")),
    ("kor; 朝鮮語; 韓語", named_variants("1", "hg", "hj", "rm", between="，")),
    ("nihongo; 日文", "{1}<（{2}<，{3}>）>"),
    ("ipa; 國際音標; 国际音标", phonetic),
    ("人民幣; 人民币; rmb; cny", "人民币{1}元"),
)
_KOREAN = _table(
    ("llang; lang; 언어", "{text|2}"),
    ("한자; 한자병기", "{1}<({2})>"),
    ("루비; 윗주; ruby; ruby-ja; 후리가나", "{1}<({2})>"),
    ("인용문; 인용; 인용문2; 따옴표; 큰따옴표; quote; 인용 상자", "{text|내용|1}"),
    ("임시링크; 임시 링크; 임시연결; 가링크; ill; 언어간 링크", "{text|label|lt|1}"),
    (
        "작은; 작게; 크게; 줄바꿈 금지; 줄바꿈금지; nowrap; 출처 필요 범위; 옛한글; 옛한글 처리; 굵게; "
        "기울임; 밑줄; 위첨자; 아래첨자; 첫가끝; 색; 툴팁; 구결; 방점; 강조",
        "{text|1}",
    ),
    ("날짜; 출생일; 사망일; 출생일과 나이; 출생일과 만나이; 날짜2; date", east_asian_date("년월일")),
    ("일본어; nihongo; 일본어 표기", japanese),
    ("중국어; zh", named_variants("1", "t", "s", "p", between=", ")),
    ("단위 변환; convert; 단위변환; 환산", conversion),
    ("ipa; 국제음성기호", phonetic),
    ("국기; 국기나라", "{1}"),
    ("해석; 번역", "{1}"),
)
_ARABIC = _table(
    (
        "إنج; إن; إنجليزية; فرن; فرنسية; لات; لاتينية; ألم; إسب; إيط; يون; عبر; ترك; فار; روس; نص أجنبي; "
        "إنك; سن; صغير; كبير; بحاجة لمصدر; نص; نص منسق; مض; خط عريض; دون التفاف; نوراب; شفق; اسم; حاشية نص; "
        "تلميح; خط سفلي; مرتفع",
        "{نص|text|1}",
    ),
    ("لغة; lang; نص بلغة", "{text|2}"),
    (
        "اقتباس; اقتباس مضمن; اقتباس خاص; اقتباس2; قتباس; quote; cquote; صندوق اقتباس; اقتباس عادي; اقتباس كتلة",
        "{نص|اقتباس|text|1}",
    ),
    ("وصلة إنترويكي; و; وإو; وصلة; إو; وصلة بين لغوية; ill", "{نص|عر|لط|تر|1}"),
    ("تحويل; convert; تحويل وحدة", conversion),
    ("عدد; رقم; رقم منسق; نسق رقم; تنسيق رقم", lambda each: each.wiki.number(each.plain("1"))),
    ("تاريخ; تاريخ الميلاد; تاريخ الوفاة; تاريخ ولادة; تاريخ وفاة; date", local_date(" ")),
    ("ق.م; ق م; قبل الميلاد; ق.م.", lambda each: f"{each.plain('1')} ق.م".strip()),
    ("هـ; هجري", lambda each: f"{each.plain('1')} هـ".strip()),
    ("م; ميلادي", lambda each: f"{each.plain('1')} م".strip()),
    ("قرآن; آية; قرآن مصور; قرآن-سورة", "{نص|3|1}"),
    ("ص", fixed("ﷺ")),
    ("عليه السلام; ع", fixed("عليه السلام")),
    ("رضي الله عنه; رض", fixed("رضي الله عنه")),
    ("أسلوب; لون", "{-1}"),
    ("يابانية; nihongo", "{1}< ({2}<، {3}>)>"),
    ("أصد; ipa", phonetic),
)
_LANGUAGES: dict[str, tuple[dict[str, Rule], list[tuple[re.Pattern[str], Rule]]]] = {
    "de": (_GERMAN, _GERMAN_PATTERNS),
    "fr": (_FRENCH, _FRENCH_PATTERNS),
    "es": (_SPANISH, []),
    "it": (_ITALIAN, []),
    "pt": (_PORTUGUESE, []),
    "ru": (_RUSSIAN, _RUSSIAN_PATTERNS),
    "ja": (_JAPANESE, _JAPANESE_PATTERNS),
    "zh": (_CHINESE, []),
    "ko": (_KOREAN, []),
    "ar": (_ARABIC, []),
}


def known_rule(name: str, language: str) -> Rule | None:
    """Return the rule for a template in a wiki of this language; None if the template is dropped.

    Args:
        name: the template's name in lower case, with spaces.
        language: language code without region.
    """
    own, patterns = _LANGUAGES.get(language, ({}, []))
    rule = own.get(name) or _COMMON.get(name)
    if rule is not None:
        return rule
    return next((rule for pattern, rule in (*patterns, *_PATTERNS) if pattern.fullmatch(name)), None)


def known_function(name: str) -> Rule | None:
    """Return the rule for a parser function, such as `formatnum`; None if it is dropped."""
    return _FUNCTIONS.get(name)
