// OpenAI's and Ollama's clients for JavaScript get calls of a tool, and answer them, whole and streamed. Run by
// ../cases_calls.py, which has written what the model says.

import assert from "node:assert/strict";

import { Ollama } from "ollama";
import OpenAI from "openai";

import { run } from "./cases.mjs";

const [url, model, told] = process.argv.slice(2);
const { question, secret, answer, text, tool, arguments: wanted } = JSON.parse(told);
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "any", maxRetries: 0 });
const ollama = new Ollama({ host: url });

const asked = { role: "user", content: question };
const parameters = {
  type: "object",
  properties: { path: { type: "string" }, lines: { type: "array", items: { type: "integer" } }, as: { type: "string" } },
  required: ["path"],
};
const named = { name: tool, description: "Reads a file.", parameters };
const tools = [{ type: "function", function: named }];

function isTheCall({ name, arguments: given }) {
  assert.equal(name, tool);
  assert.deepEqual(typeof given === "string" ? JSON.parse(given) : given, wanted);
}

// The messages that follow from a call in OpenAI's chats.
function answered(message) {
  assert.equal(message.content, text);
  assert.equal(message.tool_calls.length, 1);
  const [call] = message.tool_calls;
  assert.equal(call.type, "function");
  isTheCall(call.function);
  return [asked, message, { role: "tool", tool_call_id: call.id, content: secret }];
}

// A message of OpenAI's chats and its reason, put together from chunks as the client's users do.
async function gathered(stream) {
  const message = { role: "assistant", content: "", tool_calls: [] };
  let reason;
  for await (const { choices } of stream) {
    const { delta, finish_reason } = choices[0];
    message.content += delta.content ?? "";
    reason = finish_reason ?? reason;
    for (const { index, id, type, function: part } of delta.tool_calls ?? []) {
      const call = (message.tool_calls[index] ??= { id, type, function: { name: "", arguments: "" } });
      call.function.name += part.name ?? "";
      call.function.arguments += part.arguments ?? "";
    }
  }
  return { message, reason };
}

// Ollama's message, put together likewise.
async function lines(stream) {
  const message = { role: "assistant", content: "", tool_calls: [] };
  let reason;
  for await (const part of stream) {
    message.content += part.message.content;
    message.tool_calls.push(...(part.message.tool_calls ?? []));
    reason = part.done_reason ?? reason;
  }
  return { message, reason };
}

await run({
  async "openai: a whole chat calls, and its result is answered"() {
    const first = await openai.chat.completions.create({ model, tools, messages: [asked] });
    assert.equal(first.choices[0].finish_reason, "tool_calls");
    const messages = answered(first.choices[0].message);
    const second = await openai.chat.completions.create({ model, tools, messages });
    assert.equal(second.choices[0].finish_reason, "stop");
    assert.equal(second.choices[0].message.content, answer);
    assert.equal(second.choices[0].message.tool_calls, undefined);
  },

  async "openai: a streamed chat calls, and its result is answered"() {
    const first = await gathered(await openai.chat.completions.create({ model, tools, messages: [asked], stream: true }));
    assert.equal(first.reason, "tool_calls");
    const messages = answered(first.message);
    const second = await gathered(await openai.chat.completions.create({ model, tools, messages, stream: true }));
    assert.equal(second.reason, "stop");
    assert.equal(second.message.content, answer);
    assert.deepEqual(second.message.tool_calls, []);
  },

  async "openai: the client's runner calls the tool by itself, whole and streamed"() {
    for (const stream of [false, true]) {
      const calls = [];
      const run = (given) => {
        calls.push(given);
        return secret;
      };
      const runnable = [{ type: "function", function: { ...named, function: run, parse: JSON.parse } }];
      const runner = openai.chat.completions.runTools({ model, stream, tools: runnable, messages: [asked] });
      assert.equal(await runner.finalContent(), answer);
      assert.deepEqual(calls, [wanted]);
    }
  },

  async "openai: a response calls, and its result is answered, whole and streamed"() {
    const tools = [{ type: "function", strict: false, ...named }];
    for (const stream of [false, true]) {
      const respond = async (body) => {
        const reply = await openai.responses.create({ model, tools, stream, ...body });
        if (!stream) return reply;
        let whole, given = "";
        for await (const event of reply) {
          if (event.type === "response.function_call_arguments.delta") given += event.delta;
          if (event.type === "response.completed") whole = event.response;
        }
        const call = whole.output.find((item) => item.type === "function_call");
        assert.equal(given, call?.arguments ?? "");
        return whole;
      };
      const first = await respond({ input: question });
      const call = first.output.find((item) => item.type === "function_call");
      isTheCall(call);
      const output = { type: "function_call_output", call_id: call.call_id, output: secret };
      const input = [asked, ...first.output, output];
      for (const body of [{ input }, { previous_response_id: first.id, input: [output] }]) {
        const { output: items } = await respond(body);
        assert.deepEqual(items.map((item) => item.type), ["message"]);
        assert.equal(items[0].content[0].text, answer);
      }
    }
  },

  async "ollama: a chat calls, and its result is answered, whole and in lines"() {
    for (const stream of [false, true]) {
      const chat = async (messages) => {
        const reply = await ollama.chat({ model, tools, messages, stream });
        return stream ? lines(reply) : { message: reply.message, reason: reply.done_reason };
      };
      const { message } = await chat([asked]);
      assert.equal(message.content, text);
      assert.equal(message.tool_calls.length, 1);
      isTheCall(message.tool_calls[0].function);
      const result = { role: "tool", tool_name: tool, content: secret };
      const second = await chat([asked, message, result]);
      assert.equal(second.message.content, answer);
      assert.deepEqual(second.message.tool_calls ?? [], []);
      assert.equal(second.reason, "stop");
    }
  },
});
