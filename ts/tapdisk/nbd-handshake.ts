/**
 * The handshake of the NBD protocol, fixed newstyle, the server's side: a state machine that does no I/O.
 * The protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
 */

const NBD_MAGIC = 0x4e42444d41474943n; // "NBDMAGIC"
const OPTION_MAGIC = 0x49484156454f5054n; // "IHAVEOPT"
const REPLY_MAGIC = 0x0003e889045565a9n;

const FLAG_FIXED_NEWSTYLE = 1;
const FLAG_NO_ZEROES = 2;

const option = {
  exportName: 1,
  abort: 2,
  list: 3,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
} as const;

const reply = {
  ack: 1,
  server: 2,
  info: 3,
  metaContext: 4,
  errUnsupported: 0x8000_0001,
  errInvalid: 0x8000_0003,
  errUnknown: 0x8000_0006,
  errTooBig: 0x8000_0009,
} as const;

const info = { export: 0, name: 1, description: 2, blockSize: 3 } as const;

const transmissionFlag = {
  hasFlags: 1 << 0,
  readOnly: 1 << 1,
  sendFlush: 1 << 2,
  sendFua: 1 << 3,
  sendTrim: 1 << 5,
  sendWriteZeroes: 1 << 6,
  sendDf: 1 << 7,
  canMultiConn: 1 << 8,
  sendFastZero: 1 << 11,
} as const;

/** The one metadata context that there is: which parts of the disk are data, holes and zeros. */
const ALLOCATION_CONTEXT = "base:allocation";
/** The number under which a client that chooses it gets it. */
const ALLOCATION_CONTEXT_ID = 1;

const CLIENT_FLAGS_BYTES = 4;
const OPTION_HEADER_BYTES = 16;
/** Room for a name of the protocol's greatest length, 4096 bytes, and any sensible list of requests. */
const MAX_OPTION_BYTES = 8192;
/** Options that a client may send before it has to choose an export. */
const MAX_OPTIONS = 256;

/** What is offered to clients. */
export interface NbdExport {
  /** Its name; the empty name stands for it too. At most 4096 bytes as UTF-8. */
  readonly name: string;
  /** For people. */
  readonly description: string;
  /** Bytes. */
  readonly size: number;
  readonly readOnly: boolean;
  /** Requests that are served beyond reading, writing and flushing. */
  readonly trim: boolean;
  readonly writeZeroes: boolean;
  readonly fastZero: boolean;
  /** Bytes: what requests have to be aligned to, what they are best aligned to, and the most that one may move. */
  readonly blockSize: { readonly minimum: number; readonly preferred: number; readonly maximum: number };
}

/** What follows on some bytes of a client. */
export type HandshakeStep =
  /** More bytes are needed. */
  | { readonly kind: "more" }
  /** The client may send requests from now on; it has sent `received` already. */
  | {
      readonly kind: "transmission";
      readonly structuredReplies: boolean;
      /** The id of `base:allocation`, if the client chose it. */
      readonly allocationContext: number | undefined;
      readonly received: Uint8Array;
    }
  /** The connection is over, after the reply was sent. */
  | { readonly kind: "end"; readonly reason: string };

const MORE: HandshakeStep = { kind: "more" };

function ended(reason: string): HandshakeStep {
  return { kind: "end", reason };
}

/** The transmission flags that describe an export. */
export function transmissionFlags(offered: NbdExport, structuredReplies: boolean): number {
  let flags =
    transmissionFlag.hasFlags |
    transmissionFlag.sendFlush |
    transmissionFlag.sendFua |
    // A flush covers what was acknowledged on any connection.
    transmissionFlag.canMultiConn;
  // Each read is answered by one chunk anyway; without structured replies the flag may not be set.
  if (structuredReplies) flags |= transmissionFlag.sendDf;
  if (offered.readOnly) {
    return flags | transmissionFlag.readOnly;
  }
  if (offered.trim) flags |= transmissionFlag.sendTrim;
  if (offered.writeZeroes) flags |= transmissionFlag.sendWriteZeroes;
  if (offered.fastZero) flags |= transmissionFlag.sendFastZero;
  return flags;
}

/** One handshake. Send {@link greeting}, then give what arrives to {@link receive} and send what {@link takeReply} has. */
export class NbdHandshake {
  readonly #export: NbdExport;
  #state: "flags" | "options" | "over" = "flags";
  #noZeroes = false;
  #fixed = false;
  #structuredReplies = false;
  #allocationContext: number | undefined;
  #options = 0;
  /** Bytes that have arrived but are not complete. */
  #received: Buffer<ArrayBufferLike> = Buffer.alloc(0);
  /** Bytes of an option that is too big, still to be thrown away. */
  #skip = 0;
  #replies: Buffer[] = [];

  constructor(offered: NbdExport) {
    this.#export = offered;
  }

  /** What the server sends first. */
  static greeting(): Buffer {
    const bytes = Buffer.alloc(18);
    bytes.writeBigUInt64BE(NBD_MAGIC, 0);
    bytes.writeBigUInt64BE(OPTION_MAGIC, 8);
    bytes.writeUInt16BE(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES, 16);
    return bytes;
  }

  /** Takes in what the client sent. After anything but `more` the handshake is over. */
  receive(bytes: Uint8Array): HandshakeStep {
    this.#received = Buffer.concat([this.#received, bytes]);
    let step = MORE;
    for (let progress = true; progress && step === MORE; ) {
      const before = this.#received.length;
      step = this.#advance();
      progress = this.#received.length !== before;
    }
    if (step !== MORE) {
      this.#state = "over";
    }
    return step;
  }

  /** What is to be sent now. */
  takeReply(): Buffer {
    const replies = Buffer.concat(this.#replies);
    this.#replies = [];
    return replies;
  }

  #take(count: number): Buffer {
    const taken = this.#received.subarray(0, count);
    this.#received = this.#received.subarray(count);
    return taken;
  }

  #advance(): HandshakeStep {
    switch (this.#state) {
      case "flags":
        return this.#clientFlags();
      case "options":
        return this.#nextOption();
      case "over":
        return ended("the handshake is over");
    }
  }

  #clientFlags(): HandshakeStep {
    if (this.#received.length < CLIENT_FLAGS_BYTES) {
      return MORE;
    }
    const flags = this.#take(CLIENT_FLAGS_BYTES).readUInt32BE(0);
    if ((flags & ~(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)) !== 0) {
      return ended(`unknown client flags 0x${flags.toString(16)}`);
    }
    this.#fixed = (flags & FLAG_FIXED_NEWSTYLE) !== 0;
    this.#noZeroes = (flags & FLAG_NO_ZEROES) !== 0;
    this.#state = "options";
    return MORE;
  }

  #nextOption(): HandshakeStep {
    if (this.#skip > 0) {
      this.#skip -= this.#take(Math.min(this.#skip, this.#received.length)).length;
      return MORE;
    }
    if (this.#received.length < OPTION_HEADER_BYTES) {
      return MORE;
    }
    if (this.#received.readBigUInt64BE(0) !== OPTION_MAGIC) {
      return ended("bad magic number of an option");
    }
    const number = this.#received.readUInt32BE(8);
    const length = this.#received.readUInt32BE(12);
    const tooBig = length > MAX_OPTION_BYTES;
    if (!tooBig && this.#received.length < OPTION_HEADER_BYTES + length) {
      return MORE;
    }
    this.#take(OPTION_HEADER_BYTES);
    if (++this.#options > MAX_OPTIONS) {
      return ended("too many options");
    }
    if (!this.#fixed && number !== option.exportName) {
      return ended(`option ${number} of a client that doesn't speak fixed newstyle`);
    }
    if (tooBig) {
      return this.#tooBig(number, length);
    }
    return this.#option(number, this.#take(length));
  }

  #tooBig(number: number, length: number): HandshakeStep {
    // The one option that has no error reply.
    if (number === option.exportName) {
      return ended(`an export name of ${length} bytes`);
    }
    this.#skip = length;
    return this.#refuse(number, reply.errTooBig, `option data may have ${MAX_OPTION_BYTES} bytes at most`);
  }

  #option(number: number, data: Buffer): HandshakeStep {
    switch (number) {
      case option.exportName:
        return this.#exportName(data.toString());
      case option.abort:
        this.#reply(number, reply.ack);
        return ended("the client aborted the handshake");
      case option.list:
        return data.length > 0 ? this.#unwantedData(number) : this.#list();
      case option.structuredReply:
        if (data.length > 0) {
          return this.#unwantedData(number);
        }
        this.#structuredReplies = true;
        return this.#reply(number, reply.ack);
      case option.info:
      case option.go:
        return this.#infoOrGo(number, data);
      case option.listMetaContext:
      case option.setMetaContext:
        return this.#metaContext(number, data);
      default:
        return this.#refuse(number, reply.errUnsupported, "this option is not supported");
    }
  }

  #exportName(name: string): HandshakeStep {
    if (!this.#knows(name)) {
      return ended(`unknown export ${JSON.stringify(name)}`);
    }
    const description = this.#exportDescription();
    this.#replies.push(this.#noZeroes ? description : Buffer.concat([description, Buffer.alloc(124)]));
    return this.#transmission();
  }

  #list(): HandshakeStep {
    const name = Buffer.from(this.#export.name);
    const length = Buffer.alloc(4);
    length.writeUInt32BE(name.length);
    this.#reply(option.list, reply.server, length, name);
    return this.#reply(option.list, reply.ack);
  }

  #infoOrGo(number: number, data: Buffer): HandshakeStep {
    const request = parseInfoRequest(data);
    if (request === undefined) {
      return this.#refuse(number, reply.errInvalid, "the lengths in the option data don't fit");
    }
    if (!this.#knows(request.name)) {
      return this.#refuse(number, reply.errUnknown, "there is no export of this name");
    }
    this.#replyInfo(number, info.export, this.#exportDescription());
    if (request.wanted.has(info.name)) {
      this.#replyInfo(number, info.name, Buffer.from(this.#export.name));
    }
    if (request.wanted.has(info.description)) {
      this.#replyInfo(number, info.description, Buffer.from(this.#export.description));
    }
    if (request.wanted.has(info.blockSize)) {
      const { minimum, preferred, maximum } = this.#export.blockSize;
      const sizes = Buffer.alloc(12);
      sizes.writeUInt32BE(minimum, 0);
      sizes.writeUInt32BE(preferred, 4);
      sizes.writeUInt32BE(maximum, 8);
      this.#replyInfo(number, info.blockSize, sizes);
    }
    this.#reply(number, reply.ack);
    return number === option.go ? this.#transmission() : MORE;
  }

  /** Lists metadata contexts, or chooses from them. */
  #metaContext(number: number, data: Buffer): HandshakeStep {
    const isSet = number === option.setMetaContext;
    if (isSet) {
      // Whatever becomes of this, what was chosen before is not any more.
      this.#allocationContext = undefined;
    }
    if (!this.#structuredReplies) {
      return this.#refuse(number, reply.errInvalid, "structured replies have to be negotiated first");
    }
    const request = parseMetaContextRequest(data);
    if (request === undefined) {
      return this.#refuse(number, reply.errInvalid, "the lengths in the option data don't fit");
    }
    if (!this.#knows(request.name)) {
      return this.#refuse(number, reply.errUnknown, "there is no export of this name");
    }
    const { queries } = request;
    // Only a list may ask for everything, or everything in a namespace.
    const wanted = queries.has(ALLOCATION_CONTEXT) || (!isSet && (queries.size === 0 || queries.has("base:")));
    if (wanted) {
      const id = Buffer.alloc(4);
      if (isSet) {
        this.#allocationContext = ALLOCATION_CONTEXT_ID;
        id.writeUInt32BE(ALLOCATION_CONTEXT_ID);
      }
      this.#reply(number, reply.metaContext, id, Buffer.from(ALLOCATION_CONTEXT));
    }
    return this.#reply(number, reply.ack);
  }

  #transmission(): HandshakeStep {
    const received = Uint8Array.from(this.#take(this.#received.length));
    const allocationContext = this.#allocationContext;
    return { kind: "transmission", structuredReplies: this.#structuredReplies, allocationContext, received };
  }

  #knows(name: string): boolean {
    return name === "" || name === this.#export.name;
  }

  /** Size and transmission flags. */
  #exportDescription(): Buffer {
    const bytes = Buffer.alloc(10);
    bytes.writeBigUInt64BE(BigInt(this.#export.size), 0);
    bytes.writeUInt16BE(transmissionFlags(this.#export, this.#structuredReplies), 8);
    return bytes;
  }

  #unwantedData(number: number): HandshakeStep {
    return this.#refuse(number, reply.errInvalid, "this option has no data");
  }

  #refuse(number: number, type: number, text: string): HandshakeStep {
    return this.#reply(number, type, Buffer.from(text));
  }

  #replyInfo(number: number, type: number, payload: Buffer): void {
    const bytes = Buffer.alloc(2);
    bytes.writeUInt16BE(type);
    this.#reply(number, reply.info, bytes, payload);
  }

  #reply(number: number, type: number, ...data: Buffer[]): HandshakeStep {
    const header = Buffer.alloc(20);
    header.writeBigUInt64BE(REPLY_MAGIC, 0);
    header.writeUInt32BE(number, 8);
    header.writeUInt32BE(type, 12);
    header.writeUInt32BE(
      data.reduce((sum, part) => sum + part.length, 0),
      16,
    );
    this.#replies.push(header, ...data);
    return MORE;
  }
}

/** The data of the options INFO and GO: an export's name and the information that is wanted of it. */
function parseInfoRequest(data: Buffer): { name: string; wanted: Set<number> } | undefined {
  if (data.length < 6) {
    return undefined;
  }
  const nameLength = data.readUInt32BE(0);
  if (nameLength > data.length - 6) {
    return undefined;
  }
  const name = data.toString("utf8", 4, 4 + nameLength);
  const count = data.readUInt16BE(4 + nameLength);
  const first = 6 + nameLength;
  if (data.length !== first + 2 * count) {
    return undefined;
  }
  const wanted = new Set<number>();
  for (let index = 0; index < count; index++) {
    wanted.add(data.readUInt16BE(first + 2 * index));
  }
  return { name, wanted };
}

/** The data of the options LIST_META_CONTEXT and SET_META_CONTEXT: an export's name and queries for contexts. */
function parseMetaContextRequest(data: Buffer): { name: string; queries: Set<string> } | undefined {
  let at = 0;
  const string = (): string | undefined => {
    if (data.length - at < 4) {
      return undefined;
    }
    const length = data.readUInt32BE(at);
    at += 4;
    if (length > data.length - at) {
      return undefined;
    }
    at += length;
    return data.toString("utf8", at - length, at);
  };
  const name = string();
  if (name === undefined || data.length - at < 4) {
    return undefined;
  }
  const count = data.readUInt32BE(at);
  at += 4;
  const queries = new Set<string>();
  // A count that is too large ends with the data.
  for (let index = 0; index < count; index++) {
    const query = string();
    if (query === undefined) {
      return undefined;
    }
    queries.add(query);
  }
  return at === data.length ? { name, queries } : undefined;
}
