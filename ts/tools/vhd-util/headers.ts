/** Headers in words, line by line as the original prints them: programs look for these lines. */

import { printable } from "../cli/output.ts";
import type { Batmap, Footer, Header, ImageDescription, Locator } from "./image.ts";

/** Seconds from 1970 to the beginning of VHD's time. */
const VHD_EPOCH = 946_684_800;
const SECTOR = 512;

/** A number in decimal or hexadecimal digits. C's `%#x` has no prefix for zero. */
export function formatNumber(value: number | bigint, hex: boolean): string {
  return hex && BigInt(value) !== 0n ? `0x${value.toString(16)}` : value.toString();
}

/** C's `%#010x` without its exception for zero. */
function word(value: number): string {
  return `0x${value.toString(16).padStart(8, "0")}`;
}

function checksumLine(stored: number, computed: number): string {
  const verdict = stored === computed ? "Good!" : "Bad!";
  return `Checksum            : 0x${stored.toString(16)}|0x${computed.toString(16)} (${verdict})`;
}

/** A VHD time stamp as C's `ctime` prints it, in the zone that TZ names. */
export function formatTime(timestamp: number): string {
  const date = new Date((timestamp + VHD_EPOCH) * 1000);
  const part = (options: Intl.DateTimeFormatOptions) => date.toLocaleString("en-US", options);
  const two = (value: number) => String(value).padStart(2, "0");
  const time = [date.getHours(), date.getMinutes(), date.getSeconds()].map(two).join(":");
  const day = String(date.getDate()).padStart(2, " ");
  return `${part({ weekday: "short" })} ${part({ month: "short" })} ${day} ${time} ${date.getFullYear()}`;
}

const diskTypes = [
  "None",
  "Reserved (deprecated)",
  "Fixed hard disk",
  "Dynamic hard disk",
  "Differencing hard disk",
  "Reserved (deprecated)",
  "Reserved (deprecated)",
];

const hosts: Readonly<Record<number, string>> = { 1466511979: "Windows", 1298228000: "Macintosh" };
const FEATURES = [
  [1, "<TEMP>"],
  [2, "<RESV>"],
] as const;

function version(value: number): string {
  return `Major: ${value >>> 16}, Minor: ${value & 0xffff}`;
}

/** The lines about a footer. */
export function footerLines(footer: Footer, hex: boolean): string[] {
  const number = (value: number | bigint) => formatNumber(value, hex);
  const size = (bytes: bigint) => `${number(bytes >> 20n)} MB (${number(bytes)} Bytes)`;
  const [cylinders, heads, sectors] = [footer.geometry >>> 16, (footer.geometry >>> 8) & 0xff, footer.geometry & 0xff];
  const all = cylinders * heads * sectors;
  const features = FEATURES.map(([bit, name]) => ((footer.features & bit) === 0 ? "" : name)).join("");
  return [
    "VHD Footer Summary:",
    "-------------------",
    `Cookie              : ${printable(footer.cookie)}`,
    `Features            : (${word(footer.features)}) ${features}`,
    `File format version : ${version(footer.version)}`,
    `Data offset         : ${number(footer.dataOffset)}`,
    `Timestamp           : ${formatTime(footer.timestamp)}`,
    `Creator Application : '${printable(footer.creatorApplication)}'`,
    `Creator version     : ${version(footer.creatorVersion)}`,
    `Creator OS          : ${hosts[footer.creatorHostOs] ?? "Unknown!"}`,
    `Original disk size  : ${size(footer.originalSize)}`,
    `Current disk size   : ${size(footer.currentSize)}`,
    `Geometry            : Cyl: ${number(cylinders)}, Hds: ${number(heads)}, Sctrs: ${number(sectors)}`,
    `                    : = ${number(Math.floor(all / 2048))} MB (${number(all * SECTOR)} Bytes)`,
    `Disk type           : ${diskTypes[footer.diskType] ?? "Unknown type!"}`,
    checksumLine(footer.checksum, footer.computedChecksum),
    `UUID                : ${footer.uuid}`,
    `Saved state         : ${footer.savedState === 0 ? "No" : "Yes"}`,
    `Hidden              : ${footer.hidden}`,
    "",
  ];
}

/** The lines about a dynamic header. */
export function headerLines(header: Header, hex: boolean): string[] {
  const number = (value: number | bigint) => formatNumber(value, hex);
  return [
    "VHD Header Summary:",
    "-------------------",
    `Cookie              : ${printable(header.cookie)}`,
    `Data offset (unusd) : ${number(header.dataOffset)}`,
    `Table offset        : ${number(header.tableOffset)}`,
    `Header version      : ${word(header.version)}`,
    `Max BAT size        : ${number(header.maxTableEntries)}`,
    `Block size          : ${number(header.blockSize)} (${number(header.blockSize >>> 20)} MB)`,
    `Parent name         : ${printable(header.parentName)}`,
    `Parent UUID         : ${header.parentUuid}`,
    `Parent timestamp    : ${formatTime(header.parentTimestamp)}`,
    checksumLine(header.checksum, header.computedChecksum),
    "",
  ];
}

const platforms: Readonly<Record<string, string>> = {
  Wi2r: "PLAT_CODE_WI2R",
  Wi2k: "PLAT_CODE_WI2K",
  W2ru: "PLAT_CODE_W2RU",
  W2ku: "PLAT_CODE_W2KU",
  "Mac ": "PLAT_CODE_MAC",
  MacX: "PLAT_CODE_MACX",
};

/** The lines about parent locators. */
export function locatorLines(locators: readonly Locator[], hex: boolean): string[] {
  const number = (value: number | bigint) => formatNumber(value, hex);
  return [
    "VHD Parent Locators:",
    "--------------------",
    ...locators.flatMap((locator) => [
      `locator:            : ${locator.index}`,
      // The original's spelling of what it doesn't know.
      `       code         : ${platforms[locator.platform] ?? "UNKOWN"}`,
      `       data_space   : ${number(locator.dataSpace)}`,
      `       data_length  : ${number(locator.dataLength)}`,
      `       data_offset  : ${number(locator.dataOffset)}`,
      locator.name === null ? "failed to read parent name" : `       decoded name : ${printable(locator.name)}`,
      "",
    ]),
  ];
}

function batmapLines(batmap: Batmap, hex: boolean): string[] {
  const number = (value: number | bigint) => formatNumber(value, hex);
  const key =
    batmap.keyHash === null
      ? []
      : [`Batmap keyhash nonce: ${batmap.keyHash[0]}`, `Batmap keyhash hash : ${batmap.keyHash[1]}`];
  return [
    "VHD Batmap Summary:",
    "-------------------",
    `Batmap offset       : ${number(batmap.offset)}`,
    `Batmap size (secs)  : ${number(batmap.sectors)}`,
    `Batmap version      : ${word(batmap.version)}`,
    ...key,
    checksumLine(batmap.checksum, batmap.computedChecksum ?? batmap.checksum),
    "",
  ];
}

/** Whether the image should have a batmap: blktap's do, since version 1.2. */
function demandsBatmap({ creatorApplication, creatorVersion }: Footer): boolean {
  return creatorApplication === "tap" && creatorVersion >= 0x00010002;
}

/** All headers of an image whose batmap was read. */
export function allHeaderLines(image: ImageDescription, hex: boolean): string[] {
  const { footer, header, batmap } = image;
  if (footer === null) return [];
  const lines = footerLines(footer, hex);
  if (header === null) return lines;
  lines.push(...headerLines(header, hex));
  if (image.type === "differencing") lines.push(...locatorLines(image.locators, hex));
  if (batmap !== null && batmap.problem === null) lines.push(...batmapLines(batmap, hex));
  else if (batmap !== null || demandsBatmap(footer)) lines.push("failed to get batmap header");
  return lines;
}

/** Footer and header of an image that can't be used, as far as they are there. */
export function invalidHeaderLines(image: ImageDescription, hex: boolean): string[] {
  const { footer, header } = image;
  return [...(footer === null ? [] : footerLines(footer, hex)), ...(header === null ? [] : headerLines(header, hex))];
}
