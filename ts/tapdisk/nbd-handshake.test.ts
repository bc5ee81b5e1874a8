import { describe, expect, it } from "vitest";
import { generator } from "./memory-port.ts";
import { type HandshakeStep, type NbdExport, NbdHandshake, transmissionFlags } from "./nbd-handshake.ts";

const DISK: NbdExport = {
  name: "disk.vhd",
  description: "a disk",
  size: 0x1_2345_6000,
  readOnly: false,
  trim: false,
  writeZeroes: false,
  fastZero: false,
  blockSize: { minimum: 512, preferred: 4096, maximum: 1 << 25 },
};

const ALLOCATION = "base:allocation";

const FIXED = 1;
const NO_ZEROES = 2;
const EXPORT_NAME = 1;
const ABORT = 2;
const LIST = 3;
const STARTTLS = 5;
const INFO = 6;
const GO = 7;
const STRUCTURED = 8;
const LIST_META = 9;
const SET_META = 10;
const ACK = 1;
const SERVER = 2;
const REP_INFO = 3;
const META_CONTEXT = 4;
const UNSUP = 0x80000001;
const INVALID = 0x80000003;
const UNKNOWN = 0x80000006;
const TOO_BIG = 0x80000009;

function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
}

function bytes(...parts: (Buffer | string)[]): Buffer {
  return Buffer.concat(parts.map((part) => (typeof part === "string" ? Buffer.from(part, "latin1") : part)));
}

function option(number: number, ...data: (Buffer | string)[]): Buffer {
  const payload = bytes(...data);
  return bytes("IHAVEOPT", u32(number), u32(payload.length), payload);
}

function infoData(name: string, ...wanted: number[]): Buffer {
  return bytes(u32(name.length), name, u16(wanted.length), ...wanted.map(u16));
}

function metaData(name: string, ...queries: string[]): Buffer {
  return bytes(u32(name.length), name, u32(queries.length), ...queries.flatMap((query) => [u32(query.length), query]));
}

function reply(number: number, type: number, ...data: (Buffer | string)[]): Buffer {
  const payload = bytes(...data);
  return bytes("\x00\x03\xe8\x89\x04\x55\x65\xa9", u32(number), u32(type), u32(payload.length), payload);
}

// HAS_FLAGS, SEND_FLUSH, SEND_FUA, CAN_MULTI_CONN
const FLAGS = 0b1_0000_1101;
const SEND_DF = 1 << 7;

function exportInfo(number: number, flags = FLAGS): Buffer {
  return reply(number, REP_INFO, u16(0), u64(DISK.size), u16(flags));
}

/** Feeds a conversation to a handshake, in pieces as `cut` says. */
function converse(sent: Buffer, cut = (rest: number) => rest, disk = DISK): { replies: Buffer; step: HandshakeStep } {
  const handshake = new NbdHandshake(disk);
  const replies: Buffer[] = [];
  let at = 0;
  while (true) {
    const end = at + cut(sent.length - at);
    let step = handshake.receive(sent.subarray(at, end));
    replies.push(handshake.takeReply());
    if (step.kind === "transmission") {
      // What was not given yet is the same as what was received too early.
      step = { ...step, received: Uint8Array.from(bytes(Buffer.from(step.received), sent.subarray(end))) };
    }
    if (step.kind !== "more" || end === sent.length) {
      return { replies: bytes(...replies), step };
    }
    at = end;
  }
}

function afterFlags(...options: Buffer[]): Buffer {
  return bytes(u32(FIXED | NO_ZEROES), ...options);
}

describe("NbdHandshake", () => {
  it("greets", () => {
    expect(NbdHandshake.greeting()).toEqual(bytes("NBDMAGICIHAVEOPT", u16(3)));
  });

  it("goes to transmission by GO, with the information that was asked for", () => {
    const { replies, step } = converse(afterFlags(option(GO, infoData("", 3, 1, 2, 99))));
    expect(replies).toEqual(
      bytes(
        exportInfo(GO),
        reply(GO, REP_INFO, u16(1), "disk.vhd"),
        reply(GO, REP_INFO, u16(2), "a disk"),
        reply(GO, REP_INFO, u16(3), u32(512), u32(4096), u32(1 << 25)),
        reply(GO, ACK),
      ),
    );
    expect(step).toEqual({ kind: "transmission", structuredReplies: false, received: new Uint8Array() });
  });

  it("tells only what is asked for, and stays in the handshake after INFO", () => {
    const { replies, step } = converse(afterFlags(option(INFO, infoData("disk.vhd"))));
    expect(replies).toEqual(bytes(exportInfo(INFO), reply(INFO, ACK)));
    expect(step).toEqual({ kind: "more" });
  });

  it("hands over what came after GO", () => {
    const { step } = converse(afterFlags(option(GO, infoData("")), Buffer.from("early")));
    expect(step).toEqual({
      kind: "transmission",
      structuredReplies: false,
      received: Uint8Array.from(Buffer.from("early")),
    });
  });

  it("negotiates structured replies, and allows DF with them only", () => {
    const { replies, step } = converse(afterFlags(option(STRUCTURED), option(GO, infoData(""))));
    expect(replies).toEqual(bytes(reply(STRUCTURED, ACK), exportInfo(GO, FLAGS | SEND_DF), reply(GO, ACK)));
    expect(step).toMatchObject({ kind: "transmission", structuredReplies: true });
  });

  describe("of metadata contexts", () => {
    /** What follows on options of which the first negotiates structured replies and the last is GO. */
    const negotiate = (...options: Buffer[]) => {
      const before = reply(STRUCTURED, ACK);
      const after = bytes(exportInfo(GO, FLAGS | SEND_DF), reply(GO, ACK));
      const { replies, step } = converse(afterFlags(option(STRUCTURED), ...options, option(GO, infoData(""))));
      const middle = replies.subarray(before.length, replies.length - after.length);
      expect(replies).toEqual(bytes(before, middle, after));
      return { replies: middle, step };
    };
    const chosen = { kind: "transmission", structuredReplies: true, allocationContext: 1 };
    const notChosen = { ...chosen, allocationContext: undefined };

    it("lets a client choose base:allocation", () => {
      const queries = ["qemu:dirty-bitmap:x", ALLOCATION, "", ALLOCATION];
      const { replies, step } = negotiate(option(SET_META, metaData("disk.vhd", ...queries)));
      expect(replies).toEqual(bytes(reply(SET_META, META_CONTEXT, u32(1), ALLOCATION), reply(SET_META, ACK)));
      expect(step).toMatchObject(chosen);
    });

    it("needs no context to be chosen", () => {
      expect(negotiate().step).toMatchObject(notChosen);
    });

    it.each([[[]], [["base:"]], [["base:alloc"]], [["base:allocation:"]], [["other:allocation"]]])(
      "chooses nothing for %j",
      (queries) => {
        const { replies, step } = negotiate(option(SET_META, metaData("", ...queries)));
        expect(replies).toEqual(reply(SET_META, ACK));
        expect(step).toMatchObject(notChosen);
      },
    );

    it.each([[[]], [["base:"]], [[ALLOCATION]], [["other:", "base:"]]])("lists base:allocation for %j", (queries) => {
      const { replies, step } = negotiate(option(LIST_META, metaData("", ...queries)));
      expect(replies).toEqual(bytes(reply(LIST_META, META_CONTEXT, u32(0), ALLOCATION), reply(LIST_META, ACK)));
      // A list chooses nothing.
      expect(step).toMatchObject(notChosen);
    });

    it.each([[["other:"]], [["base"]], [["base:a"]]])("lists nothing for %j", (queries) => {
      expect(negotiate(option(LIST_META, metaData("", ...queries))).replies).toEqual(reply(LIST_META, ACK));
    });

    it.each<[string, Buffer, number]>([
      ["of an unknown export", metaData("other", ALLOCATION), UNKNOWN],
      ["without data", Buffer.alloc(0), INVALID],
      ["without queries", bytes(u32(0)), INVALID],
      ["whose name is longer than its data", bytes(u32(9), "disk.vhd", u32(0)), INVALID],
      ["whose name is absurdly long", bytes(u32(0xffffffff), u32(0)), INVALID],
      ["with fewer queries than it says", bytes(u32(0), u32(2), u32(15), ALLOCATION), INVALID],
      ["with more queries than one could count", bytes(u32(0), u32(0xffffffff), Buffer.alloc(400)), INVALID],
      ["with more data than queries", bytes(metaData("", ALLOCATION), "x"), INVALID],
      ["whose query is longer than its data", bytes(u32(0), u32(1), u32(16), ALLOCATION), INVALID],
    ])("refuses a request %s, and forgets what was chosen before", (_name, data, type) => {
      const first = option(SET_META, metaData("", ALLOCATION));
      const answer = negotiate(first).replies;
      for (const number of [LIST_META, SET_META]) {
        const { replies, step } = negotiate(first, option(number, data));
        const refusal = replies.subarray(answer.length);
        expect(refusal.subarray(0, 16)).toEqual(reply(number, type).subarray(0, 16));
        expect(refusal).toHaveLength(20 + refusal.readUInt32BE(16));
        expect(step).toMatchObject(number === SET_META ? notChosen : chosen);
      }
    });
  });

  it("goes to transmission by EXPORT_NAME, with padding unless told otherwise", () => {
    const description = bytes(u64(DISK.size), u16(FLAGS));
    expect(converse(afterFlags(option(EXPORT_NAME))).replies).toEqual(description);
    expect(converse(bytes(u32(FIXED), option(EXPORT_NAME, "disk.vhd"))).replies).toEqual(
      bytes(description, Buffer.alloc(124)),
    );
    const old = converse(bytes(u32(0), option(EXPORT_NAME)));
    expect(old.replies).toEqual(bytes(description, Buffer.alloc(124)));
    expect(old.step.kind).toBe("transmission");
  });

  it("ends the connection on an unknown EXPORT_NAME", () => {
    expect(converse(afterFlags(option(EXPORT_NAME, "other")))).toMatchObject({
      replies: Buffer.alloc(0),
      step: { kind: "end" },
    });
  });

  it("lists the export", () => {
    const { replies, step } = converse(afterFlags(option(LIST)));
    expect(replies).toEqual(bytes(reply(LIST, SERVER, u32(8), "disk.vhd"), reply(LIST, ACK)));
    expect(step.kind).toBe("more");
  });

  it("acknowledges ABORT and ends", () => {
    const { replies, step } = converse(afterFlags(option(ABORT, "whatever")));
    expect(replies).toEqual(reply(ABORT, ACK));
    expect(step.kind).toBe("end");
  });

  it.each<[string, Buffer, number, number]>([
    ["STARTTLS", option(STARTTLS), STARTTLS, UNSUP],
    ["a metadata context without structured replies", option(SET_META, metaData("", ALLOCATION)), SET_META, INVALID],
    ["a list of metadata contexts without structured replies", option(LIST_META, metaData("")), LIST_META, INVALID],
    ["an unknown option", option(0xfffffffe, "data"), 0xfffffffe, UNSUP],
    ["LIST with data", option(LIST, "x"), LIST, INVALID],
    ["STRUCTURED_REPLY with data", option(STRUCTURED, "x"), STRUCTURED, INVALID],
    ["GO of an unknown export", option(GO, infoData("other", 3)), GO, UNKNOWN],
    ["INFO of an unknown export", option(INFO, infoData("disk.vh")), INFO, UNKNOWN],
    ["GO without data", option(GO), GO, INVALID],
    ["GO whose name is longer than its data", option(GO, u32(5), "name", u16(0)), GO, INVALID],
    ["GO whose name is absurdly long", option(GO, u32(0xffffffff), u16(0)), GO, INVALID],
    ["GO with fewer requests than it says", option(GO, u32(0), u16(2), u16(3)), GO, INVALID],
    ["GO with more requests than it says", option(GO, u32(0), u16(1), u16(3), u16(1)), GO, INVALID],
    ["an option with too much data", option(LIST, Buffer.alloc(8193)), LIST, TOO_BIG],
    ["an unknown option with far too much data", option(77, Buffer.alloc(1 << 20)), 77, TOO_BIG],
  ])("refuses %s, and goes on", (_name, sent, number, type) => {
    const { replies, step } = converse(afterFlags(sent, option(GO, infoData(""))));
    expect(replies.subarray(0, 16)).toEqual(reply(number, type).subarray(0, 16));
    const next = 20 + replies.readUInt32BE(16);
    expect(replies.subarray(next)).toEqual(bytes(exportInfo(GO), reply(GO, ACK)));
    expect(step.kind).toBe("transmission");
  });

  it("accepts a name of the greatest length that the protocol knows", () => {
    const name = "n".repeat(4096);
    const { step } = converse(afterFlags(option(GO, infoData(name, 0, 1, 2, 3))), undefined, { ...DISK, name });
    expect(step.kind).toBe("transmission");
  });

  it.each<[string, Buffer]>([
    ["unknown client flags", u32(4)],
    ["a wrong magic number", afterFlags(bytes("IHAVEOPX", u32(3), u32(0)))],
    ["the NBD of old", bytes(Buffer.from("00000000000000000000000000000000", "hex"), Buffer.alloc(64, 0xff))],
    ["HTTP", bytes("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")],
    ["an option of a client that isn't fixed newstyle", bytes(u32(NO_ZEROES), option(LIST))],
    ["an EXPORT_NAME that is too long", afterFlags(bytes("IHAVEOPT", u32(EXPORT_NAME), u32(0xffffffff)))],
    ["options without end", afterFlags(...Array.from({ length: 257 }, () => option(LIST)))],
  ])("ends the connection on %s", (_name, sent) => {
    expect(converse(sent).step.kind).toBe("end");
  });

  it("takes nothing after its end", () => {
    const handshake = new NbdHandshake(DISK);
    expect(handshake.receive(u32(0xffffffff)).kind).toBe("end");
    expect(handshake.receive(afterFlags(option(GO, infoData("")))).kind).toBe("end");
    expect(handshake.takeReply()).toHaveLength(0);
  });

  it("does the same however the bytes are cut", () => {
    const conversations = [
      afterFlags(
        option(STARTTLS),
        option(STRUCTURED),
        option(LIST),
        option(LIST, Buffer.alloc(9000, 0x49)),
        option(INFO, infoData("nobody", 1)),
        option(INFO, infoData("", 3)),
        option(LIST_META, metaData("")),
        option(SET_META, metaData("disk.vhd", "base:", ALLOCATION)),
        option(GO, infoData("disk.vhd", 3)),
        bytes("\x25\x60\x95\x13 a request"),
      ),
      bytes(u32(FIXED), option(99, "?"), option(EXPORT_NAME, "disk.vhd"), bytes("more")),
      afterFlags(option(LIST), option(ABORT), option(LIST)),
      afterFlags(option(LIST), bytes("garbage that is long enough")),
    ];
    const random = generator(4711);
    for (const sent of conversations) {
      const whole = converse(sent);
      expect(converse(sent, () => 1)).toEqual(whole);
      for (let round = 0; round < 200; round++) {
        const most = 1 + random(round % 2 === 0 ? 40 : 4000);
        expect(converse(sent, (rest) => Math.min(rest, 1 + random(most)))).toEqual(whole);
      }
    }
  });

  it("never throws, whatever arrives", () => {
    const random = generator(17);
    const parts = [
      () => option(random(12), Buffer.from(Array.from({ length: random(40) }, () => random(256)))),
      () => option(random(2) + INFO, u32(random(20)), Buffer.from(Array.from({ length: random(30) }, () => random(3)))),
      () => Buffer.from(Array.from({ length: random(40) }, () => random(256))),
    ];
    for (let round = 0; round < 2000; round++) {
      const sent = Array.from({ length: 1 + random(6) }, () => parts[random(10) === 0 ? 2 : random(2)]?.() ?? u32(0));
      converse(bytes(u32(random(4)), ...sent), (rest) => Math.min(rest, 1 + random(64)));
    }
  });
});

describe("transmissionFlags", () => {
  it("offers what the disk can do, and nothing that writes when read-only", () => {
    const all = { ...DISK, trim: true, writeZeroes: true, fastZero: true };
    expect(transmissionFlags(all, false)).toBe(FLAGS | (1 << 5) | (1 << 6) | (1 << 11));
    expect(transmissionFlags({ ...all, readOnly: true }, true)).toBe(FLAGS | 2 | SEND_DF);
  });
});
