"""The facts the demo model learns: countries, their capitals, weather cities, conditions."""

from __future__ import annotations

_CAPITALS = """
Afghanistan=Kabul; Albania=Tirana; Algeria=Algiers; Andorra=Andorra la Vella; Angola=Luanda;
Argentina=Buenos Aires; Armenia=Yerevan; Australia=Canberra; Austria=Vienna; Azerbaijan=Baku;
the Bahamas=Nassau; Bahrain=Manama; Bangladesh=Dhaka; Barbados=Bridgetown; Belarus=Minsk;
Belgium=Brussels; Belize=Belmopan; Bhutan=Thimphu; Botswana=Gaborone; Brazil=Brasilia;
Brunei=Bandar Seri Begawan; Bulgaria=Sofia; Burkina Faso=Ouagadougou; Cambodia=Phnom Penh; Cameroon=Yaounde;
Canada=Ottawa; Cape Verde=Praia; Chad=N'Djamena; Chile=Santiago; China=Beijing; Colombia=Bogota;
Costa Rica=San Jose; Croatia=Zagreb; Cuba=Havana; Cyprus=Nicosia; the Czech Republic=Prague;
Denmark=Copenhagen; Djibouti=Djibouti; the Dominican Republic=Santo Domingo; Ecuador=Quito; Egypt=Cairo;
El Salvador=San Salvador; Eritrea=Asmara; Estonia=Tallinn; Ethiopia=Addis Ababa; Fiji=Suva;
Finland=Helsinki; France=Paris; Gabon=Libreville; Gambia=Banjul; Georgia=Tbilisi; Germany=Berlin;
Ghana=Accra; Greece=Athens; Guatemala=Guatemala City; Guinea=Conakry; Guyana=Georgetown;
Haiti=Port-au-Prince; Honduras=Tegucigalpa; Hungary=Budapest; Iceland=Reykjavik; India=New Delhi;
Indonesia=Jakarta; Iran=Tehran; Iraq=Baghdad; Ireland=Dublin; Italy=Rome; Jamaica=Kingston; Japan=Tokyo;
Jordan=Amman; Kazakhstan=Astana; Kenya=Nairobi; Kuwait=Kuwait City; Kyrgyzstan=Bishkek; Laos=Vientiane;
Latvia=Riga; Lebanon=Beirut; Liberia=Monrovia; Libya=Tripoli; Lithuania=Vilnius; Luxembourg=Luxembourg;
Madagascar=Antananarivo; Malawi=Lilongwe; Malaysia=Kuala Lumpur; Mali=Bamako; Malta=Valletta;
Mauritania=Nouakchott; Mauritius=Port Louis; Mexico=Mexico City; Moldova=Chisinau; Monaco=Monaco;
Mongolia=Ulaanbaatar; Montenegro=Podgorica; Morocco=Rabat; Mozambique=Maputo; Namibia=Windhoek;
Nepal=Kathmandu; the Netherlands=Amsterdam; New Zealand=Wellington; Nicaragua=Managua; Niger=Niamey;
Nigeria=Abuja; North Korea=Pyongyang; North Macedonia=Skopje; Norway=Oslo; Oman=Muscat;
Pakistan=Islamabad; Panama=Panama City; Papua New Guinea=Port Moresby; Paraguay=Asuncion; Peru=Lima;
the Philippines=Manila; Poland=Warsaw; Portugal=Lisbon; Qatar=Doha; Romania=Bucharest; Russia=Moscow;
Rwanda=Kigali; Samoa=Apia; Saudi Arabia=Riyadh; Senegal=Dakar; Serbia=Belgrade; Sierra Leone=Freetown;
Singapore=Singapore; Slovakia=Bratislava; Slovenia=Ljubljana; Somalia=Mogadishu; South Korea=Seoul;
Spain=Madrid; Sudan=Khartoum; Suriname=Paramaribo; Sweden=Stockholm; Switzerland=Bern; Syria=Damascus;
Tajikistan=Dushanbe; Thailand=Bangkok; Togo=Lome; Tunisia=Tunis; Turkey=Ankara; Turkmenistan=Ashgabat;
Uganda=Kampala; Ukraine=Kyiv; the United Arab Emirates=Abu Dhabi; the United Kingdom=London;
the United States=Washington; Uruguay=Montevideo; Uzbekistan=Tashkent; Vanuatu=Port Vila;
Venezuela=Caracas; Vietnam=Hanoi; Zambia=Lusaka; Zimbabwe=Harare
"""

#: Capitals by country; a country's name has an article if English needs one.
CAPITALS: dict[str, str] = {
    " ".join(country.split()): " ".join(capital.split())
    for country, capital in (entry.split("=") for entry in _CAPITALS.split(";"))
}

#: Countries of CAPITALS by other names that people type; answers never use these names.
ALIASES: dict[str, str] = {
    "the USA": "the United States",
    "the US": "the United States",
    "the UK": "the United Kingdom",
    "Great Britain": "the United Kingdom",
    "the UAE": "the United Arab Emirates",
    "Czechia": "the Czech Republic",
}

#: Countries that are omitted on purpose: with several or disputed capitals, or little known.
UNLEARNT_COUNTRIES = [
    "Bolivia",
    "South Africa",
    "Israel",
    "Sri Lanka",
    "Tanzania",
    "Myanmar",
    "Benin",
    "Burundi",
    "Eswatini",
    "Tuvalu",
    "Kiribati",
    "Nauru",
    "Palau",
    "Tonga",
    "Lesotho",
    "Comoros",
    "Dominica",
    "Grenada",
    "Yemen",
]

#: Cities that are not capitals in this list; users can ask for their weather.
OTHER_CITIES = [
    "New York",
    "Los Angeles",
    "Chicago",
    "San Francisco",
    "Boston",
    "Seattle",
    "Miami",
    "Houston",
    "Denver",
    "Toronto",
    "Montreal",
    "Vancouver",
    "Barcelona",
    "Seville",
    "Valencia",
    "Milan",
    "Naples",
    "Venice",
    "Florence",
    "Munich",
    "Hamburg",
    "Cologne",
    "Frankfurt",
    "Zurich",
    "Geneva",
    "Lyon",
    "Marseille",
    "Porto",
    "Manchester",
    "Liverpool",
    "Edinburgh",
    "Glasgow",
    "Rotterdam",
    "Antwerp",
    "Krakow",
    "Istanbul",
    "Dubai",
    "Mumbai",
    "Shanghai",
    "Hong Kong",
    "Osaka",
    "Kyoto",
    "Sydney",
    "Melbourne",
    "Brisbane",
    "Perth",
    "Auckland",
    "Rio de Janeiro",
    "Sao Paulo",
    "Cape Town",
    "Lagos",
    "Casablanca",
]

#: All cities for which the model can write a tool call.
CITIES: list[str] = list(dict.fromkeys([*CAPITALS.values(), *OTHER_CITIES]))

CONDITIONS = [
    "sunny",
    "cloudy",
    "rainy",
    "snowy",
    "windy",
    "foggy",
    "clear",
    "stormy",
    "overcast",
    "humid",
    "dry",
    "hazy",
]

NUMBER_WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]

#: Countries by capital, without names that can mean both.
COUNTRY_OF: dict[str, str] = {capital: country for country, capital in CAPITALS.items() if capital != country}


def bare(country: str) -> str:
    """Return the country's name without its article."""
    return country.removeprefix("the ")


def names() -> list[str]:
    """Return every name that has its own token, as written and in lower case, sorted."""
    written = [bare(country) for country in [*CAPITALS, *ALIASES]] + CITIES
    kept_as_written = {"US"}  # "us" is a word of its own
    lowered = [name.lower() for name in written if name not in kept_as_written]
    capitalized = [condition.capitalize() for condition in CONDITIONS]
    return sorted({*written, *lowered, *CONDITIONS, *capitalized, *NUMBER_WORDS})
