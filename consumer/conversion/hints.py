"""The probable meaning of a wrong line of a mapping.

Theory of operation. Shops and trackers have common words for names of the platform: ``purchase`` is its ``checkout``.
Those are tables here. Other names are compared by their spelling, and without a similar name there is no suggestion: a
wrong one would mislead. Two functions also judge: whether a constant is a value of its field, and whether names can be
the advertiser's own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any, Final

from consumer.conversion.normalise import Omitted, Unrecognised, trim
from consumer.conversion.targets import (
    ACTION_SOURCES,
    CONTENTS,
    EVENT_NAMES,
    FILTER,
    LONGEST_OWN_EVENT,
    TARGETS,
    Target,
)
from consumer.errors import nearest

# Conversion name -> words for it in other trackers' events, without blanks and underscores.
_EVENT_WORDS: Final = {
    "add_payment_info": "paymentinfo paymentinfoadded addpayment paymententered",
    "add_to_cart": "addtobasket addtobag cartadd addedtocart addedtobasket productadded itemadded basketadd",
    "add_to_wishlist": "wishlist addtofavorites addtofavourites favorite favourite wishlistadd",
    "app_install": "install installed firstopen appinstalled",
    "app_open": "open appopened launch applaunch",
    "checkout": "purchase purchased order ordered orderplaced placeorder ordercompleted completeorder "
    "completepurchase buy sale sold transaction payment paid orderpaid completepayment paymentcompleted "
    "checkoutcompleted",
    "find_location": "storelocator findstore locatestore",
    "initiate_checkout": "begincheckout startcheckout checkoutstarted checkoutinitiated checkoutstart",
    "lead": "generatelead leadgenerated leadcreated",
    "page_visit": "pageview pageviewed visit productview productviewed viewproduct viewitem productdetail "
    "itemview landing",
    "schedule": "booking book appointment reservation",
    "search": "searched query productsearched viewsearchresults sitesearch",
    "signup": "registration register registered completeregistration createaccount accountcreated customerregistered "
    "signedup newcustomer",
    "start_trial": "trial trialstarted freetrial",
    "submit_application": "apply application applied",
    "subscribe": "subscription subscribed subscriptioncreated newsletter newslettersignup",
    "view_category": "categoryview categoryviewed viewitemlist productlistviewed viewcollection collectionview",
    "watch_video": "videoview video playvideo videoplay videoplayed videowatched",
}
# Field -> words for it in other schemas.
_FIELD_WORDS: Final = {
    "event_id": "uuid messageid eventuuid",
    "event_name": "type event eventtype name",
    "event_time": "time timestamp occurredat createdat happenedat date ts",
    "action_source": "channel source platform",
    "ad_account_id": "account accountid adaccount",
    "event_source_url": "url pageurl page sourceurl href",
    "user_data.em": "email emails mail hashedemail emailaddress",
    "user_data.ph": "phone phones phonenumber mobile telephone hashedphone",
    "user_data.ge": "gender sex",
    "user_data.db": "dob born birthday birthdate dateofbirth",
    "user_data.ln": "lastname surname familyname",
    "user_data.fn": "firstname givenname",
    "user_data.ct": "city town",
    "user_data.st": "state region province",
    "user_data.zp": "zip zipcode postalcode postcode",
    "user_data.external_id": "userid customerid externalids",
    "user_data.hashed_maids": "maid maids idfa gaid aaid advertisingid advertisingids",
    "user_data.client_ip_address": "ip ipaddress clientip ipaddr",
    "user_data.client_user_agent": "useragent ua agent browser",
    "user_data.click_id": "epik clickid",
    "custom_data.value": "total amount revenue price ordervalue ordertotal grandtotal",
    f"{CONTENTS}.id": "contents items products sku itemid productid lineitems",
    f"{CONTENTS}.item_price": "unitprice priceperitem",
    f"{CONTENTS}.quantity": "qty pieces itemquantity",
    f"{CONTENTS}.item_name": "title itemtitle productname",
    "custom_data.order_id": "ordernumber orderid",
    "custom_data.search_string": "query searchquery searchterm keywords",
}


def _plain(word: str) -> str:
    return re.sub(r"[\W_]+", "", word).lower()


# The field by word.
_EVENT_OF: Final = {word: name for name, words in _EVENT_WORDS.items() for word in words.split()}
_FIELD_OF: Final = {word: name for name, words in _FIELD_WORDS.items() for word in words.split()}
_FIELD_OF_KEY: Final = {
    _plain(target.key): target.name for target in TARGETS.values() if target.parent != CONTENTS
}
_MAX_NAMED: Final = 8

_CURLY: Final = frozenset("“”„‟‘’‚«»")
_LINE: Final = re.compile(r"\(at line (\d+)")
# Common errors in lines of TOML -> what to do. The first that fits is shown.
_LINES: Final = (
    (re.compile(r"\s*(?://|--|;)"), "a comment begins with #"),
    (re.compile(r"\s*{"), 'this is JSON, but a mapping is TOML: name = "value", one a line'),
    (re.compile(r"\s*([\w.]*\[\d*\][\w.\[\]]*)\s*="), 'write the name in quotes, since it holds []: "{0}"'),
    (re.compile(r"\s*[^\s=\"':]+\s*:"), "write = between name and value, not a colon"),
    (
        re.compile(r"\s*(\w[\w.]*(?: +\w[\w.]*)+)\s*="),
        'write the name in quotes, since it holds blanks: "{0}"',
    ),
    (re.compile(r".*=\s*(?:True|False)\b"), "true and false are written in lower case"),
    (re.compile(r".*=\s*([A-Za-z_][^\s\"'#]*)\s*(?:#.*)?$"), 'write the value in quotes: "{0}"'),
    (re.compile(r".*[\"']\s*,\s*$"), "remove the comma at the end of the line"),
    (re.compile(r".*=\s*(?:#.*)?$"), "write a value behind the =; an empty one is written as two quotes"),
    (re.compile(r"[^\"]*(?:\"[^\"]*\"[^\"]*)*\"[^\"]*$"), 'a quote " is missing on this line'),
)


def event_of(word: str) -> str:
    """Return the standard event name that `word` is, or is a common word for; empty if it is neither."""
    plain = _plain(word)
    return next((name for name in EVENT_NAMES if _plain(name) == plain), _EVENT_OF.get(plain, ""))


def event_meant(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown event name: the one of `known` that it probably means, or all."""
    names = sorted(known)
    plain = _plain(name)
    alike = [one for one in names if plain and _plain(one) == plain]
    word = _EVENT_OF.get(plain, "")
    meant = next(iter(alike), "") or (word if word in names else nearest(name, names))
    return (
        f"the nearest is {meant!r}" if meant else f"known: {', '.join(one for one in names if one != FILTER)}"
    )


def field_meant(name: str) -> str:
    """Return the field of a conversion event that `name` probably means; empty if none."""
    parent, _, key = name.rpartition(".")
    if _plain(key) in _FIELD_OF:
        return _FIELD_OF[_plain(key)]
    # Only the last part is compared: all fields of one object have the same beginning.
    beside = {target.key: target.name for target in TARGETS.values() if target.parent == parent}
    words = {word: field for word, field in _FIELD_OF.items() if field in beside.values()}
    anywhere = {target.key: target.name for target in reversed(TARGETS.values())}
    places = (beside, words, anywhere)
    return next((place[near] for place in places if (near := nearest(key, place))), "")


def field_named(word: str, kinds: frozenset[str]) -> str:
    """Return the field that a value of this name and these kinds surely is; empty if none is certain."""
    # What a customer has often carries the owner's name, too: customer_email.
    parts = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", word).split("_")
    whole, last = (_plain(part) for part in (word, parts[-1]))
    field = _FIELD_OF_KEY.get(whole) or _FIELD_OF.get(whole, "")
    if not field and (named := _FIELD_OF.get(last, "")).startswith("user_data."):
        field = named
    return field if field in TARGETS and kinds <= TARGETS[field].kinds else ""


def fields_within(name: str) -> str:
    """Return the fields of the object `name`, as a list for a message; empty if it is no object."""
    fields = [one for one in TARGETS if one.startswith((f"{name}.", f"{name}[]."))]
    return ", ".join(fields[:_MAX_NAMED]) + (", …" if len(fields) > _MAX_NAMED else "")


def line_meant(toml: str, error: str) -> str:
    """Return what to do about a line that is not TOML; `error` is the parser's message; empty if that is not known."""
    if "Cannot declare" in error:
        return "; this table is there already: put the lines of both together"
    if "Cannot overwrite" in error:
        return "; this name is there already: remove one of the lines"
    at = _LINE.search(error)
    lines = toml.splitlines()
    # At the end of the document the parser names no line.
    line = lines[int(at[1]) - 1] if at and int(at[1]) <= len(lines) else "".join(lines[-1:])
    if _CURLY & set(line):
        return '; write straight quotes: "'
    for pattern, what in _LINES:
        if found := pattern.match(line):
            return "; " + what.format(*found.groups())
    return ""


def wrong_constant(
    target: Target, constant: Any, event_types: Collection[str] | None, channels: Collection[str]
) -> str:
    """Return what a computed value of this field must be, if `constant` is no such value; else empty.

    `event_types`: the event types with a name; None: any is allowed.
    """
    if target.name == "event_name":
        is_good = event_types is None or constant in event_types
        meant = "an event type of [event_names], or a name of the platform's"
    elif target.name == "action_source":
        is_good = str(constant).strip().lower() in {*channels, *ACTION_SOURCES}
        meant = "a channel of [action_sources], or an action source"
    else:
        sent = target.rule(constant)
        is_good, meant = sent is not None and not isinstance(sent, Omitted | Unrecognised), target.meant
    return "" if is_good else meant


def wrong_with_own_events(names: Any) -> str:
    """Return why these cannot be the advertiser's own event names; empty if they can."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return 'names must be a list of texts: names = ["loyalty_joined"]'
    for name in names:
        shown = repr(name[:LONGEST_OWN_EVENT])
        # The platform would treat it as its own name, and the shop would not notice.
        if name.strip().lower() in EVENT_NAMES:
            return f"{shown} is a standard event name, in any case: remove it"
        if len(name) > LONGEST_OWN_EVENT:
            return f"{shown}… has {len(name)} characters; {LONGEST_OWN_EVENT} is the most there may be"
        if name != trim(name) or not name.isprintable():
            return f"{shown} has blanks around it, or characters that cannot be printed"
        if name in ("", FILTER):
            return f"{shown} is no name: write it as you registered it with Pinterest"
    twice = [name for name in names if names.count(name) > 1]
    return f"{twice[0]!r} is listed twice: remove one" if twice else ""
