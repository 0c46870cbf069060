//! What kind of address a packet would go to, and which word of the operator it takes.
//!
//! IPv4 is public unless it is reserved (the IANA special-purpose registry); IPv6 the other way round: only what is assigned
//! as global unicast is public. An address that carries an IPv4 address in it (mapped, compatible, NAT64, 6to4, Teredo) is at
//! least what the carried one is: a translator on the way delivers to that one. A NAT64 prefix of the network's own cannot be
//! told from a public address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

/// How far a request may reach. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::origin) enum Reach {
    /// Public addresses.
    Public,
    /// Addresses of this network and this machine too.
    Inside,
    /// Those where clouds answer with credentials too.
    Link,
}

/// What an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Anybody's.
    Public,
    /// Set aside: documentation, benchmarks, tunnels, the future.
    Reserved,
    /// Of this network: RFC 1918, carriers' NAT, unique local, site-local.
    Private,
    /// Of this machine.
    Loopback,
    /// Of this link, and the places outside it where a cloud tells a machine its credentials.
    Link,
    /// Nobody's: unspecified, multicast, broadcast. No model is there.
    Never,
}

/// Names that mean a cloud's metadata service, whoever resolves them.
const METADATA: [&str; 5] =
    ["metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"];

// === impl Kind ===

impl Kind {
    /// The least reach that it takes; `None`: none is enough.
    pub(super) fn needs(self) -> Option<Reach> {
        match self {
            Self::Public => Some(Reach::Public),
            Self::Reserved | Self::Private | Self::Loopback => Some(Reach::Inside),
            Self::Link => Some(Reach::Link),
            Self::Never => None,
        }
    }

    /// Whether it may be asked by whom `reach` was given.
    pub(super) fn is_within(self, reach: Reach) -> bool {
        self.needs().is_some_and(|needs| needs <= reach)
    }

    /// Of a resolved address.
    pub(super) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => of_v4(address),
            IpAddr::V6(address) => of_v6(address),
        }
    }

    /// What can be told of a URL's host without asking a name server: of literals all, of names those that are defined. The
    /// URL's own parser has normalised decimal, octal, hexadecimal and shortened forms and full-width digits by now.
    pub(super) fn of_host(url: &Url) -> Option<Self> {
        match url.host()? {
            Host::Ipv4(address) => Some(of_v4(address)),
            Host::Ipv6(address) => Some(of_v6(address)),
            Host::Domain(name) => {
                let name = name.trim_end_matches('.');
                if name == "localhost" || name.ends_with(".localhost") {
                    Some(Self::Loopback)
                } else {
                    METADATA.contains(&name).then_some(Self::Link)
                }
            }
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "a public address",
            Self::Reserved => "an address set aside for other uses",
            Self::Private => "a private address",
            Self::Loopback => "an address of this machine",
            Self::Link => "a link-local or metadata address",
            Self::Never => "an address that no server has",
        })
    }
}

fn of_v4(address: Ipv4Addr) -> Kind {
    match address.octets() {
        // "This network": Linux connects to itself when asked for one of them.
        [0, ..] | [224..=239, ..] | [255, 255, 255, 255] => Kind::Never,
        // Services of Azure, Alibaba and Oracle that hand out credentials lie outside 169.254.
        [169, 254, ..] | [168, 63, 129, 16] | [100, 100, 100, 200] | [192, 0, 0, 192] => Kind::Link,
        [127, ..] => Kind::Loopback,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Kind::Private,
        [192, 0, 0 | 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Kind::Reserved,
        [198, 18 | 19, ..] | [192, 88, 99, _] | [240..=255, ..] => Kind::Reserved,
        _ => Kind::Public,
    }
}

fn of_v6(address: Ipv6Addr) -> Kind {
    if let Some(mapped) = address.to_ipv4_mapped() {
        return of_v4(mapped);
    }
    let carried = |high: u16, low: u16| of_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Kind::Never,
        [0, 0, 0, 0, 0, 0, 0, 1] => Kind::Loopback,
        // IPv4-compatible, long abolished.
        [0, 0, 0, 0, 0, 0, high, low] => carried(high, low).max(Kind::Reserved),
        // NAT64's well-known prefix: in a network without IPv4 every IPv4 server is found there, the public ones too.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => carried(high, low),
        // NAT64 of the network's own.
        [0x64, 0xff9b, 1, .., high, low] => carried(high, low).max(Kind::Private),
        // Metadata services of AWS and Google.
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254] => Kind::Link,
        [0xfe80..=0xfebf, ..] => Kind::Link,
        [0xfec0..=0xfeff, ..] | [0xfc00..=0xfdff, ..] => Kind::Private,
        [0xff00..=0xffff, ..] => Kind::Never,
        // 6to4 carries the address of its router; Teredo that of its server, and of its client with all bits inverted.
        [0x2002, high, low, ..] => carried(high, low).max(Kind::Reserved),
        [0x2001, 0, server_high, server_low, _, _, high, low] => {
            carried(!high, !low).max(carried(server_high, server_low)).max(Kind::Reserved)
        }
        // Protocol assignments, benchmarks, ORCHID; documentation.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Kind::Reserved,
        [0x2000..=0x3fff, ..] => Kind::Public,
        _ => Kind::Reserved,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_has_its_kind() {
        for (kind, addresses) in [
            (
                Kind::Public,
                "1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0",
            ),
            (
                Kind::Public,
                "169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.167.255.255 192.169.0.0 192.0.1.0",
            ),
            (Kind::Public, "198.17.255.255 198.20.0.0 223.255.255.255 168.63.129.15 100.128.100.200 191.255.255.255"),
            (Kind::Private, "10.0.0.0 10.255.255.255 172.16.0.0 172.31.255.255 192.168.0.0 192.168.255.255"),
            (Kind::Private, "100.64.0.0 100.127.255.255"),
            (Kind::Loopback, "127.0.0.0 127.0.0.1 127.255.255.255"),
            (Kind::Link, "169.254.0.0 169.254.169.254 169.254.170.2 169.254.255.255 168.63.129.16 100.100.100.200"),
            (Kind::Link, "192.0.0.192"),
            (Kind::Never, "0.0.0.0 0.0.0.1 0.255.255.255 224.0.0.1 239.255.255.255 255.255.255.255"),
            (Kind::Reserved, "192.0.0.1 192.0.2.1 198.51.100.7 203.0.113.255 198.18.0.0 198.19.255.255 192.88.99.1"),
            (Kind::Reserved, "240.0.0.0 255.255.255.254"),
            (Kind::Public, "2606:4700::1111 2a00:1450:4001::8a 2001:4860:4860::8888 2003:: 3ffe:ffff::1 2001:200::1"),
            (Kind::Public, "::ffff:1.1.1.1 64:ff9b::1.1.1.1"),
            (Kind::Loopback, "::1 ::ffff:127.0.0.1 64:ff9b::127.0.0.1 ::127.0.0.1 2002:7f00:1::1 64:ff9b:1::127.0.0.1"),
            (Kind::Link, "fe80::1 febf:ffff::1 fd00:ec2::254 fd20:ce::254 ::ffff:169.254.169.254"),
            (Kind::Link, "64:ff9b::169.254.169.254 2002:a9fe:a9fe:: ::169.254.169.254"),
            (Kind::Link, "2001:0:a9fe:a9fe::102:304 2001:0:102:304::5601:5601"),
            (
                Kind::Private,
                "fc00::1 fd00::1 fdff:ffff::1 fec0::1 feff::1 ::ffff:10.0.0.5 64:ff9b::10.0.0.5 ::10.0.0.5",
            ),
            (Kind::Private, "2002:a00:5::1 64:ff9b:1::1.1.1.1 64:ff9b::100.64.0.1"),
            (Kind::Never, ":: ff02::1 ffff::1 ::ffff:0.0.0.0 64:ff9b::224.0.0.1 ::224.0.0.1"),
            (
                Kind::Reserved,
                "2001:db8::1 2001:0:102:304::fefe:fefe 2001:2::1 2001:10::1 2001:1ff::1 3fff::1 100::1 5f00::1",
            ),
            (Kind::Reserved, "2002:101:101::1 ::1.1.1.1 1::1 4000::1 e000::1 64:ff9a::1"),
        ] {
            for address in addresses.split(' ') {
                assert_eq!(Kind::of(address.parse().unwrap()), kind, "{address}");
            }
        }
    }

    #[test]
    fn every_way_to_write_a_host_is_seen_through() {
        for (kind, hosts) in [
            (Kind::Loopback, "127.0.0.1 127.1 127.0.1 2130706433 0x7f000001 0x7f.1 0177.0.0.1 017700000001 127.0.0.1."),
            (Kind::Loopback, "0x7F.0x0.0x0.0x1 %31%32%37.0.0.1 127%2e0%2e0%2e1 127。0。0。1 127．0．0．1 127｡0｡0｡1"),
            (Kind::Loopback, "１２７.0.0.1 ①②⑦.0.0.1 [::1] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1] [::ffff:7f00:1]"),
            (
                Kind::Loopback,
                "[0000::0001] [64:ff9b::7f00:1] [2002:7f00:1::] localhost LOCALHOST localhost. a.localhost",
            ),
            (Kind::Loopback, "ⓛocalhost %6cocalhost ｌocalhost x.y.localhost. local\u{ad}host"),
            (Kind::Link, "169.254.169.254 2852039166 0xa9fea9fe 0251.0376.0251.0376 169.254.43518 0xA9.0xFE.43518"),
            (Kind::Link, "169.0xfea9fe [fe80::1] [fd00:ec2::254] [::ffff:a9fe:a9fe] [FD00:0EC2:0::254]"),
            (Kind::Link, "metadata.google.internal metadata Metadata.Goog."),
            (
                Kind::Private,
                "10.5 0xa000005 012.0.0.5 192.168.257 3232235777 [::ffff:a00:5] [fec0::1] 100.64.1 172.16.1",
            ),
            (Kind::Never, "0 0.0.0.0 00.0 0x0 [::] 255.255.255.255 4294967295 224.1 [ff02::1]"),
        ] {
            for host in hosts.split(' ') {
                let url = Url::parse(&format!("http://{host}/x")).unwrap_or_else(|error| panic!("{host}: {error}"));
                assert_eq!(Kind::of_host(&url), Some(kind), "{host} is {url}");
            }
        }
        let names =
            "example.com localhost.example.com notlocalhost metadata.example 127.0.0.1.nip.io xn--80ak6aa92e.com";
        for name in names.split(' ') {
            assert_eq!(Kind::of_host(&Url::parse(&format!("https://{name}/")).unwrap()), None, "{name}");
        }
        // What the parser takes for no host at all cannot be asked either.
        for host in
            ["256.0.0.1", "1.2.3.4.5", "0x100000000", "[fe80::1%25eth0]", "[::1", "127.0.0.1%00", "a b", "1.2.3.08"]
        {
            assert!(Url::parse(&format!("http://{host}/x")).is_err(), "{host}");
        }
    }

    #[test]
    fn reaches_include_one_another() {
        let all = [Kind::Public, Kind::Reserved, Kind::Private, Kind::Loopback, Kind::Link, Kind::Never];
        let within = |reach| all.into_iter().filter(|kind| kind.is_within(reach)).count();
        assert_eq!([Reach::Public, Reach::Inside, Reach::Link].map(within), [1, 4, 5]);
    }
}
